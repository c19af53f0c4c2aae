"""`optimize inspect`: the axes, attention sites, layers, parameters and cost of a model."""

import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.language import (
    decoding_lines,
    describe_decoding,
    describe_unmasking,
    unmasking_lines,
)
from optimize.commands.models import HELP, load_model
from optimize.commands.targets import looks_like_bundle
from optimize.ir.errors import RecipeError

SHOWN_AXES = 12


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|BUNDLE", help=f"A bundle folder, {HELP}")],
    code: Annotated[bool, typer.Option("--code", help="Print the program as Python.")] = False,
    machine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help='Predict seconds on a GPU, such as h100, or "this-cpu".'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a model is made of, or what a bundle says about itself."""
    if looks_like_bundle(model):
        if machine is not None:
            raise RecipeError(
                f"inspect --machine: found the bundle {model}, expected the MODEL it was made of; "
                "predictions are made from its program"
            )
        _inspect_bundle(model, as_json)
        return
    found = None
    if machine is not None:
        from optimize.measure.roofline import machine_named

        found = machine_named(machine)
    loaded = load_model(model)
    from optimize.capture.capture_model import capture_model
    from optimize.ir.printing import program_text

    program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
    data = describe_program(program)
    if found is not None:
        data["predicted"] = predicted(program, found)
    if as_json:
        print_json(data)
        return
    _show_program(loaded.name, data)
    if code:
        console().print(Text(program_text(program)), soft_wrap=True)


def describe_program(program: Any) -> dict[str, Any]:
    """What `inspect` says, as data."""
    from optimize.measure.cost import graph_costs, program_calls, program_flops

    calls = program_calls(program)
    graphs = {}
    for role, graph in program.graphs.items():
        costs = graph_costs(graph)
        graphs[role] = {
            "calls": calls.get(role, 0),
            "nodes": len(costs),
            "flops_per_call": sum(cost.flops for cost in costs),
            "attention": _attention_sites(graph, costs),
            "axes": _axes(graph),
        }
    return {
        "parameters": sum(tensor.numel() for tensor in program.weights.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in program.weights.values()),
        "layers": _layers(program.weights),
        "language": describe_decoding(program),
        "unmasking": describe_unmasking(program),
        "flops_per_request": program_flops(program),
        "graphs": graphs,
        "inputs": [item.model_dump() for item in program.signature.inputs],
        "outputs": list(program.signature.outputs),
        "notes": list(program.notes),
    }


def predicted(program: Any, machine: Any) -> dict[str, Any]:
    """Seconds of each graph and of a request on a machine, and how far to trust them."""
    from optimize.measure.roofline import error_stated, predict_graph, predict_seconds

    return {
        "machine": machine.name,
        "seconds_per_request": predict_seconds(program, machine),
        "seconds_per_call": {
            role: predict_graph(graph, machine) for role, graph in program.graphs.items()
        },
        "error": error_stated(machine),
    }


def _layers(weights: Any) -> dict[str, int]:
    """Repeated blocks: the names of numbered modules and how many there are."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in weights:
        match = re.match(r"(.*?)\.(\d+)\.", name)
        if match:
            found[match[1]].add(match[2])
    return {name: len(numbers) for name, numbers in sorted(found.items())}


def _attention_sites(graph: Any, costs: Any) -> list[dict[str, Any]]:
    from optimize.ir.graph import hint, shape

    flops = {cost.name: cost.flops for cost in costs}
    sites = []
    for node in graph.graph.nodes:
        # Of a site with a cache the keys are those of the cache.
        places = {"scaled_dot_product_attention": (0, 1), "cached_attention": (0, 3)}
        found = next((places[name] for name in places if name in str(node.target)), None)
        if found is not None:
            query, key = (shape(node.args[place]) for place in found)
            sites.append(
                {
                    "name": node.name,
                    "heads": hint(query[-3]),
                    "queries": hint(query[-2]),
                    "keys": hint(key[-2]),
                    "width": hint(query[-1]),
                    "flops": flops.get(node.name, 0.0),
                }
            )
    return sites


def _axes(graph: Any) -> list[dict[str, Any]]:
    """The classes of axes that most nodes carry: name, size, where each is born and dies."""
    from optimize.ir.axis_rules import infer_axes
    from optimize.ir.token_axis import CannotSubset, token_axis

    axes = infer_axes(graph)
    names: dict[int, str] = {}
    first_input = graph.node(graph.inputs[0])
    for index, axis in enumerate(axes.of(first_input)):
        names[id(axes.find(axis))] = "batch" if index == 0 else f"{first_input.name}.{index}"
    if "latent" in graph.inputs:
        with suppress(CannotSubset):
            names[id(axes.find(token_axis(graph, axes)))] = "tokens"
    carried: dict[int, dict[str, Any]] = {}
    for node in graph.graph.nodes:
        if not axes.is_tensor(node) or node.name in graph.weights:
            continue
        for axis in axes.of(node):
            root = axes.find(axis)
            entry = carried.setdefault(
                id(root),
                {
                    "name": names.get(id(root), ""),
                    "size": str(root.extent),
                    "nodes": 0,
                    "born": node.name,
                    "dies": node.name,
                },
            )
            entry["nodes"] += 1
            entry["dies"] = node.name
    return sorted(carried.values(), key=lambda entry: (-entry["nodes"], entry["born"]))


def _show_program(name: str, data: dict[str, Any]) -> None:
    from optimize.ir.report import amount, seconds_text

    output = console()
    prediction = data.get("predicted")
    layers = ", ".join(f"{count} {prefix}" for prefix, count in data["layers"].items())
    output.print(Text(name, "bold"))
    output.print(
        Text(
            f"{amount(data['parameters'])} parameters, {amount(data['bytes'])}B; "
            f"{amount(data['flops_per_request'])}FLOP per request; layers: {layers or 'none'}"
        )
    )
    if data["language"] is not None:
        for line in decoding_lines(data["language"]):
            output.print(Text(line))
    if data["unmasking"] is not None:
        for line in unmasking_lines(data["unmasking"]):
            output.print(Text(line))
    if prediction is not None:
        seconds = seconds_text(prediction["seconds_per_request"])
        line = f"{prediction['machine']}: {seconds} per request ({prediction['error']})"
        output.print(Text(line))
    fields = [f"{item['name']} {item['dtype']} {list(item['shape'])}" for item in data["inputs"]]
    output.print(Text(f"request: {', '.join([*fields, 'seed'])} → {', '.join(data['outputs'])}"))
    for role, graph in data["graphs"].items():
        output.print()
        seconds = ""
        if prediction is not None:
            seconds = f", {seconds_text(prediction['seconds_per_call'][role])} predicted"
        output.print(
            Text(
                f"{role}: {graph['calls']} calls per request, {graph['nodes']} ops, "
                f"{amount(graph['flops_per_call'])}FLOP per call{seconds}",
                "bold",
            )
        )
        if graph["attention"]:
            output.print(_table(graph["attention"], graph["flops_per_call"]))
        axes = Table("axis", "size", "nodes", "born at", "dies at", box=None, header_style="dim")
        for entry in graph["axes"][:SHOWN_AXES]:
            cells = [entry["name"], entry["size"], entry["nodes"], entry["born"], entry["dies"]]
            axes.add_row(*(Text(str(cell)) for cell in cells))
        output.print(axes)
        if len(graph["axes"]) > SHOWN_AXES:
            output.print(f"… and {len(graph['axes']) - SHOWN_AXES} more (--json has all)")
    for note in data["notes"]:
        output.print(Text(f"note: {note}", "dim"))


def _table(sites: list[dict[str, Any]], total: float) -> Table:
    from optimize.ir.report import amount

    table = Table(
        "attention site", "heads", "queries", "keys", "width", "FLOPs", "share",
        box=None, header_style="dim",
    )  # fmt: skip
    for site in sites:
        numbers = [str(site[name]) for name in ("heads", "queries", "keys", "width")]
        share = f"{site['flops'] / total:.1%}" if total else ""
        table.add_row(Text(site["name"]), *numbers, amount(site["flops"]), share)
    return table


def _inspect_bundle(path: str, as_json: bool) -> None:
    from optimize.runtime.bundle import open_bundle

    bundle = open_bundle(path)
    manifest = bundle.manifest
    state = bundle.provenance
    data = {"signed": state != "unsigned", "provenance": state, **manifest.model_dump(mode="json")}
    if as_json:
        print_json(data)
        return
    output = console()
    output.print(
        Text(f"{Path(path).name}: {', '.join(manifest.targets)}, {bundle.provenance}", "bold")
    )
    fields = [f"{item.name} {item.dtype} {list(item.shape)}" for item in manifest.signature.inputs]
    outputs = ", ".join(manifest.signature.outputs)
    output.print(Text(f"request: {', '.join([*fields, 'seed'])} → {outputs}"))
    if manifest.prompting is not None:
        output.print(Text(f"prompts: {_prompts(manifest.prompting)}"))
    output.print(Text(f"graphs: {', '.join(manifest.graphs)}"))
    table = Table("file", "bytes", "sha256", box=None, header_style="dim")
    for name, entry in manifest.files.items():
        table.add_row(Text(name), str(entry.size), entry.sha256[:16])
    output.print(table)


def _prompts(prompting: Any) -> str:
    image = prompting.image
    picture = f" and a picture of {image.width} x {image.height} pixels" if image else ""
    return f"{prompting.template!r}, at most {prompting.longest_prompt} tokens{picture}"
