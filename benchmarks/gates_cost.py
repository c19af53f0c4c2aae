"""The cost model against measurement: ratios of recipes over the zoo, in ONNX Runtime, one thread.

    PYTHONPATH=. python benchmarks/gates_cost.py

For every zoo model and every recipe of its kind: seconds of a request after the recipe divided by
those before it, predicted and measured; and the same per step of the loop, which leaves out the
gain of fewer steps. Bundles of a model run in turns, with requests of the traced sizes. Of a loop
that ends by what it generates the calls that it made are predicted, not those it may make: how
long an answer gets, and how much of a draft is kept, are no matter of cost. A recipe that changed
nothing is named on standard error and has no row.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optimize.api import apply_recipe
from optimize.capture.capture_model import capture_model
from optimize.commands.models import ZOO, load_model
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.measure.cost import graph_flops
from optimize.measure.roofline import Machine, machine_named, predict_graph
from optimize.measure.timing import interleaved_seconds
from optimize.passes.calibration import NEW_TOKENS, Calibration, signature_request
from optimize.recipes.recipe import Recipe
from optimize.runtime.bundle import open_bundle
from optimize.runtime.driver import Engine
from optimize.runtime.loop import Call, Repeat, calls, repeats
from optimize.runtime.onnx_engine import OnnxGraphs
from optimize.runtime.session import Session

Cost = Callable[[Graph], float]
"""Graph → what one call of it costs."""

BASELINE = "unoptimised"
ROUNDS, SECONDS = (3, 15), 15.0
"""Rounds of a model at least and at most, and the time after which no further one starts."""

CHANGED = 0.05
"""A predicted ratio of steps further from 1 means that the recipe changed what a step costs."""

IMAGE = ("image-fast", "image-quality", "balanced")
RECIPES: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("llm-fast",),
    "digits-dit": IMAGE,
    "digits-dit-epsilon": IMAGE,
    "digits-dit-v": IMAGE,
    "digits-restore": IMAGE,
    "find-the-digit": ("vlm-fast",),
    "moving-digits": ("video-fast", "balanced"),
    "shakespeare": ("llm-fast",),
    "torus-crystals": (),
}
"""Model → the named recipes that are for its kind."""

VARIED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "digits-dit": {
        "keep_ratio 0.5": {"cache_regions": {"keep_ratio": 0.5}},
        "solver fused": {"fuse_solver": {"solver": "same"}},
    },
    "find-the-digit": {"keep_ratio 0.6": {"prune_visual_tokens": {"keep_ratio": 0.6}}},
    "moving-digits": {"budget 0.05": {"tile_attention": {"budget": 0.05}}},
    "shakespeare": {"draft_length 4": {"attach_draft": {"draft": "lookup", "draft_length": 4}}},
    "torus-crystals": {"solver fused": {"fuse_solver": {"solver": "same"}}},
}
"""Model → recipes of one pass that vary one option."""


class _Counted:
    """An engine that notes the seconds of its calls."""

    def __init__(self, engine: Engine, seconds: dict[str, list[float]]) -> None:
        self._engine, self._seconds = engine, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, graph: str, inputs: Any, outputs: Any) -> Any:
        start = time.thread_time()
        made = self._engine.run(graph, inputs, outputs)
        self._seconds.setdefault(graph, []).append(time.thread_time() - start)
        return made


class _Bundle:
    """A program as a bundle in ONNX Runtime that answers one request again and again."""

    def __init__(self, program: Program, folder: Path, examples: Mapping[str, Any]) -> None:
        program.export(folder)
        opened = open_bundle(folder, target="onnx")
        graphs = OnnxGraphs(opened.models, opened.manifest.graphs, opened.weights, threads=1)
        self.program, self.providers, self._graphs = program, graphs.providers, graphs
        self._session = Session(opened, self)
        self._request = _request(program, examples)
        self._inside = {call.graph for each in repeats(program.loop.body) for call in _calls(each)}
        self.seconds: dict[str, list[float]] = {}
        self.steps = 0

    def engine(self) -> Any:
        """Implements `Graphs`; forgets the calls of the request before."""
        self.seconds = {}
        return _Counted(self._graphs.engine(), self.seconds)

    def answer(self) -> None:
        """Answers the request."""

        def count(done: int, _: int) -> None:
            self.steps = done

        self._session(progress=count, **self._request)

    def request_cost(self, cost: Cost) -> float:
        """Of the calls of the last answer."""
        return sum(
            len(spent) * cost(self.program.graphs[name]) for name, spent in self.seconds.items()
        )

    def step_cost(self, cost: Cost) -> float:
        """Of those in the loop, per step."""
        inside = {name: spent for name, spent in self.seconds.items() if name in self._inside}
        total = sum(len(spent) * cost(self.program.graphs[name]) for name, spent in inside.items())
        return total / self.steps

    def step_seconds(self) -> float:
        """Measured in the engine, per step of the loop."""
        return sum(sum(self.seconds.get(name, ())) for name in self._inside) / self.steps


def _calls(repeat: Repeat) -> list[Call]:
    return [call for body in repeat.bodies.values() for call in calls(body)]


def _request(program: Program, examples: Mapping[str, Any]) -> dict[str, Any]:
    """The example inputs, and of what generates tokens as long an answer as it may give."""
    longest = {
        item.name: int(item.high)
        for item in program.signature.inputs
        if item.name == NEW_TOKENS and item.high is not None
    }
    calibration = Calibration(inputs=longest)
    return dict(signature_request(program.signature, program.loop, calibration, examples, 0))


def cost_model_figures() -> dict[str, Any]:
    """Rows, and the median and worst error of the ratios of requests and of steps.

    `changed_step` is of the steps that cost another amount after the recipe, `by_flops` what the
    ratio of FLOPs alone would say of these.
    """
    machine = machine_named("this-cpu")
    rows = [row for name in ZOO for row in _rows(name, machine)]
    figures: dict[str, Any] = {"machine": machine.name, "rows": rows}
    changed = [row for row in rows if abs(row["step"]["predicted"] - 1) > CHANGED]
    for name, what, chosen in (
        ("request", "request", rows),
        ("step", "step", rows),
        ("changed_step", "step", changed),
        ("changed_step_by_flops", "flops", changed),
    ):
        errors = [row[what]["error"] for row in chosen]
        figures |= {
            f"cost_model_{name}_median_error": statistics.median(errors),
            f"cost_model_{name}_worst_error": max(errors),
            f"cost_model_{name}_ratios": len(errors),
        }
    return figures


def _rows(name: str, machine: Machine) -> list[dict[str, Any]]:
    """One row per recipe of a model."""
    print(f"{name}: capture and recipes", file=sys.stderr, flush=True)
    loaded = load_model(f"zoo:{name}")
    examples = loaded.example_inputs or {}
    program = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
    programs = {BASELINE: program}
    for title, recipe in _recipes(name).items():
        programs[title] = apply_recipe(program, recipe, examples, verify=False)
    for title in [title for title in programs if title != BASELINE]:
        if all(record.declined is not None for record in programs[title].history):
            print(f"{name}: {title} changed nothing", file=sys.stderr, flush=True)
            del programs[title]
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            title: _Bundle(item, Path(folder) / str(place), examples)
            for place, (title, item) in enumerate(programs.items())
        }
        return _measured(name, bundles, machine)


def _recipes(name: str) -> dict[str, Recipe]:
    varied = {title: {"passes": [item]} for title, item in VARIED.get(name, {}).items()}
    return {title: Recipe.load(title) for title in RECIPES[name]} | {
        title: Recipe.load(item) for title, item in varied.items()
    }


def _measured(name: str, bundles: Mapping[str, _Bundle], machine: Machine) -> list[dict[str, Any]]:
    start = time.perf_counter()
    for bundle in bundles.values():
        bundle.answer()
    # As many rounds as fit into the time, at least three.
    rounds = round(SECONDS / (time.perf_counter() - start))
    steps: dict[str, list[float]] = {title: [] for title in bundles}

    def run(title: str) -> None:
        bundles[title].answer()
        steps[title].append(bundles[title].step_seconds())

    seconds = interleaved_seconds(
        {title: partial(run, title) for title in bundles},
        min(max(rounds, ROUNDS[0]), ROUNDS[1]),
        warmup=0,
        # Leaves out what other processes take; all work is on this thread.
        clock=time.thread_time,
    )
    predicted = partial(predict_graph, machine=machine)
    base = bundles[BASELINE]
    rows = []
    for title, bundle in bundles.items():
        if title == BASELINE:
            continue
        ratio = bundle.request_cost(predicted) / base.request_cost(predicted)
        step, flops = (
            bundle.step_cost(cost) / base.step_cost(cost) for cost in (predicted, graph_flops)
        )
        rows.append(
            {
                "model": name,
                "recipe": title,
                "request": _pair(ratio, seconds[title], seconds[BASELINE]),
                "step": _pair(step, steps[title], steps[BASELINE]),
                "flops": _pair(flops, steps[title], steps[BASELINE]),
            }
        )
    return rows


def _pair(predicted: float, ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """The predicted ratio, the median of the measured ones, and the error."""
    measured = statistics.median(a / b for a, b in zip(ours, baseline, strict=True))
    return {
        "predicted": predicted,
        "measured": measured,
        "error": abs(predicted / measured - 1),
    }


def main() -> None:
    start = time.perf_counter()
    figures = cost_model_figures()
    for row in figures.pop("rows"):
        cells = [f"{row['model']:20}{row['recipe']:18}"]
        for what in ("request", "step"):
            pair = row[what]
            cells.append(
                f"{what} {pair['predicted']:.3f} {pair['measured']:.3f} {pair['error']:6.1%}"
            )
        print("  ".join(cells))
    print(json.dumps(figures | {"seconds": time.perf_counter() - start}, indent=1))


if __name__ == "__main__":
    main()
