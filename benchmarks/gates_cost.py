"""The cost model's error: predicted against measured ratios, for the zoo's models and recipes.

A ratio is the seconds of a request after a recipe divided by those before it, in ONNX Runtime with
one thread, in turns. The prediction comes from counted work and a calibration on synthetic graphs;
nothing is fitted to these models. Where the number of calls depends on the answer, as with drafts,
the ratio is that of one engine call of the graph that the loop repeats.
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from parts import Figures

REPEATS = 5
LIBRARY = ("balanced", "image-fast", "image-quality", "video-fast", "vlm-fast", "llm-fast")
VARIED: dict[str, dict[str, Any]] = {
    "half the tokens": {"passes": [{"cache_regions": {"keep_ratio": 0.5}}]},
    "a quarter of the tokens": {"passes": [{"cache_regions": {"keep_ratio": 0.25}}]},
    "fused Euler, 25 steps": {"passes": [{"fuse_solver": {"solver": "euler", "steps": 25}}]},
    "second order, 10 steps": {
        "passes": [{"fuse_solver": {"solver": "dpm_solver_pp", "steps": 10}}]
    },
}


def cost_model_figures() -> Figures:
    """Median and worst error of the predicted ratios, and all of them."""
    rows = list(_rows())
    errors = [row["error"] for row in rows]
    return {
        "cost_model_error": round(statistics.median(errors), 4),
        "cost_model_worst": round(max(errors), 4),
        "cost_model_ratios": rows,
    }


def _rows() -> Iterator[dict[str, Any]]:
    import torch

    from optimize.capture.capture_model import capture_model
    from optimize.commands.models import ZOO, load_model
    from optimize.measure.roofline import this_cpu

    torch.set_num_threads(1)
    machine = this_cpu(1)
    for name in ZOO:
        loaded = load_model(f"zoo:{name}")
        before = capture_model(loaded.model, loaded.example_inputs, loop=loaded.loop)
        for recipe in (*LIBRARY, *VARIED):
            after = _applied(before, recipe, loaded.example_inputs)
            if after is not None:
                yield _row(name, recipe, before, after, machine, loaded.example_inputs)


def _applied(program: Any, recipe: str, examples: Any) -> Any:
    """The program after a recipe; None where nothing of it applies."""
    from optimize.api import apply_recipe
    from optimize.ir.errors import PassDeclined, RecipeError
    from optimize.recipes.recipe import Recipe

    try:
        after = apply_recipe(
            program, Recipe.load(VARIED.get(recipe, recipe)), examples, verify=False
        )
    except (PassDeclined, RecipeError):
        return None
    return after if any(record.declined is None for record in after.history) else None


def _row(
    name: str, recipe: str, before: Any, after: Any, machine: Any, examples: Any
) -> dict[str, Any]:
    from optimize.measure.roofline import predict_seconds

    predicted = predict_seconds(after, machine) / predict_seconds(before, machine)
    measured = _measured(before, after, examples)
    row = {
        "model": name,
        "recipe": recipe,
        "predicted": round(predicted, 4),
        "measured": round(measured, 4),
        "error": round(abs(predicted / measured - 1), 4),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _measured(before: Any, after: Any, examples: Any) -> float:
    """Seconds of a request after the recipe divided by those before, in turns."""
    from optimize.ir.program import as_arrays
    from optimize.measure.timing import compare, interleaved_seconds
    from optimize.passes.calibration import requests
    from optimize.runtime import load

    asked = as_arrays(requests(before, None, examples)[0])
    with tempfile.TemporaryDirectory() as folder:
        paths = {"before": Path(folder) / "before", "after": Path(folder) / "after"}
        before.export(paths["before"])
        after.export(paths["after"])
        with load(paths["before"], threads=1) as one, load(paths["after"], threads=1) as other:
            seconds = interleaved_seconds(
                {"before": lambda: one(**asked), "after": lambda: other(**asked)}, REPEATS
            )
    return 1 / compare(seconds["after"], seconds["before"]).speedup.value


if __name__ == "__main__":
    print(json.dumps(cost_model_figures()))
