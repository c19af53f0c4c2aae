"""What a well-formed loop is: every name it uses exists, with the dtype and shape that is taken."""

from collections.abc import Iterator, Mapping

import torch

from optimize.ir.graph import Graph, hint
from optimize.ir.program import Program
from optimize.ir.torch_engine import DTYPE_NAMES
from optimize.runtime.loop import Binding, Call, Input, Noise, Repeat, Slot, size_of
from optimize.runtime.prompting import prompting_problems

Kind = tuple[str, tuple[int, ...]]
"""A dtype and a shape at the traced sizes."""


def loop_problems(program: Program) -> Iterator[str]:
    """What is wrong with the loop of a program; nothing when it is well formed."""
    loop, slots = program.loop, {slot.name: slot for slot in program.loop.slots}
    appended: set[str] = set()
    for slot in loop.slots:
        if slot.initial is not None:
            where = f"slot {slot.name!r}"
            if slot.initial.source == "state":
                yield f"{where}: found initial value from a slot, expected request, table or noise"
            else:
                yield from _binding_problems(program, slot.initial, where, 0)
    for item in loop.body:
        yield from _body_problems(program, item, 0, appended)
    for result, name in loop.results.items():
        if name not in slots:
            yield f"result {result!r}: found no slot {name!r}, known: {sorted(slots)}"
    results = appended | set(loop.results)
    if set(program.signature.outputs) != results:
        yield (
            f"signature: found outputs {sorted(program.signature.outputs)}, "
            f"expected the results of the loop {sorted(results)}"
        )
    if program.prompting is not None:
        yield from prompting_problems(program.prompting, program.signature, program.assets)


def _body_problems(
    program: Program, item: Call | Repeat, row: int, appended: set[str]
) -> Iterator[str]:
    if isinstance(item, Call):
        yield from _call_problems(program, item, row)
        appended.update(to.append for to in item.outputs.values() if to.append is not None)
        return
    slots = {slot.name: slot for slot in program.loop.slots}
    if item.until is not None:
        if item.until not in slots:
            yield f"repeat: found no slot {item.until!r} for `until`, known: {sorted(slots)}"
        elif slots[item.until].dtype != "bool":
            found = slots[item.until].dtype
            yield f"repeat: found `until` slot {item.until!r} of {found}, expected bool"
    for name in dict.fromkeys(item.steps):
        # A body that is used only early needs no more rows than its last step.
        last = (len(item.steps) - 1 - item.steps[::-1].index(name)) * item.stride
        for inner in item.bodies[name]:
            yield from _body_problems(program, inner, last, appended)


def _call_problems(program: Program, call: Call, row: int) -> Iterator[str]:
    where = f"call of {call.graph!r}"
    graph = program.graphs.get(call.graph)
    if graph is None:
        yield f"{where}: found no such graph, known: {sorted(program.graphs)}"
        return
    if set(call.inputs) != set(graph.inputs):
        yield f"{where}: found inputs {sorted(call.inputs)}, expected {sorted(graph.inputs)}"
    unknown = sorted(set(call.outputs) - set(graph.outputs))
    if unknown:
        yield f"{where}: found unknown outputs {unknown}, expected some of {list(graph.outputs)}"
    sizes = named_sizes(graph)
    for name, binding in call.inputs.items():
        place = f"{where}, input {name!r}"
        problems = list(_binding_problems(program, binding, place, row))
        yield from problems
        if not problems and name in graph.inputs:
            given = _bound_kind(program, binding, sizes)
            yield from _kind_problems(place, given, _node_kind(graph.node(name).meta["val"]))
    slots = {slot.name: slot for slot in program.loop.slots}
    made = dict(zip(graph.outputs, graph.graph.output_node().args[0], strict=False))  # type: ignore[arg-type]
    for name, destination in call.outputs.items():
        place = f"{where}, output {name!r}"
        if destination.state is None:
            continue
        slot = slots.get(destination.state)
        if slot is None:
            yield f"{place}: found no slot {destination.state!r}, known: {sorted(slots)}"
        elif name in made and isinstance(made[name].meta.get("val"), torch.Tensor):
            taken = _kind(slot.dtype, slot.shape, sizes)
            yield from _kind_problems(place, _node_kind(made[name].meta["val"]), taken)


def _binding_problems(program: Program, binding: Binding, where: str, row: int) -> Iterator[str]:
    """`row`: the last row of the tables that the binding starts from."""
    loop = program.loop
    known = {
        "state": {slot.name for slot in loop.slots},
        "table": set(program.tables),
        "noise": {noise.name for noise in loop.noise},
        "request": {item.name for item in program.signature.inputs},
    }[binding.source]
    if binding.name not in known:
        yield f"{where}: found no {binding.source} {binding.name!r}, known: {sorted(known)}"
        return
    needed = row + (binding.steps or 1)
    if binding.source == "table" and len(program.tables[binding.name]) < needed:
        rows = len(program.tables[binding.name])
        yield f"{where}: found table {binding.name!r} with {rows} rows, expected at least {needed}"
    drawn = {noise.name: noise.steps for noise in loop.noise}.get(binding.name)
    if binding.source == "noise" and drawn is not None and drawn < needed:
        yield f"{where}: found noise {binding.name!r} of {drawn} steps, expected at least {needed}"


def named_sizes(graph: Graph) -> dict[str, int]:
    """The traced value of each named size of a graph."""
    symbols = {symbol: name for name, symbol in graph.dimensions.items()}
    sizes: dict[str, int] = {}
    for node in graph.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and str(size.node.expr) in symbols:
                sizes[symbols[str(size.node.expr)]] = hint(size)
    return sizes


def _node_kind(value: torch.Tensor) -> Kind:
    return DTYPE_NAMES[value.dtype], tuple(hint(size) for size in value.shape)


def _kind(dtype: str, shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> Kind | None:
    """None when a size is not one of this graph's."""
    try:
        return dtype, tuple(size_of(dimension, dict(sizes)) for dimension in shape)
    except KeyError:
        return None


def _bound_kind(program: Program, binding: Binding, sizes: Mapping[str, int]) -> Kind | None:
    if binding.source == "table":
        table = program.tables[binding.name]
        return str(table.dtype), (*_stacked(binding), *table.shape[1:])
    fields: dict[str, Slot | Noise | Input] = {}
    if binding.source == "state":
        fields = {slot.name: slot for slot in program.loop.slots}
    elif binding.source == "noise":
        fields = {noise.name: noise for noise in program.loop.noise}
    else:
        fields = {given.name: given for given in program.signature.inputs}
    item = fields[binding.name]
    return _kind(item.dtype, (*_stacked(binding), *item.shape), sizes)


def _stacked(binding: Binding) -> tuple[int, ...]:
    return () if binding.steps is None else (binding.steps,)


def _kind_problems(where: str, given: Kind | None, taken: Kind | None) -> Iterator[str]:
    if given is None or taken is None or given == taken:
        return
    yield f"{where}: found {given[0]} {list(given[1])}, expected {taken[0]} {list(taken[1])}"
