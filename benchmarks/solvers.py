"""The figures of the solvers: orders, agreement with diffusers, calls saved, overhead, loop forms.

    python benchmarks/solvers.py --out build/bench/solvers.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures. Models
are the zoo's, with committed weights; nothing is trained here.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parts import Figures, run_parts

# The toy problems and comparisons are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SAMPLES = 360
BATCH = 60
CALLS = (8, 10, 12, 16, 20, 25, 32)
FEW_CALLS = (5, 6, 8)
SEEDS = 5
DUALFAST = 0.2


def orders() -> Figures:
    """Measured order of convergence of every solver against the order it claims."""
    from tests.passes.solvers.test_orders import claimed_and_measured

    found = claimed_and_measured()
    for name, (claimed, measured) in found.items():
        print(f"{name:32} claimed {claimed}  measured {measured:.3f}", file=sys.stderr)
    worst = max(abs(claimed - measured) for claimed, measured in found.values())
    return {"order_error_max": worst, "orders": found}


def agreement() -> Figures:
    """Relative difference from diffusers' schedulers on one list of noise levels."""
    from tests.passes.solvers.test_agreement import differences

    found = differences()
    return {"diffusers_error_max": max(found.values()), "diffusers_configurations": len(found)}


class Digits:
    """The digits model, sampled through exported bundles.

    Args:
        prediction: the head.
    """

    def __init__(self, prediction: str = "flow") -> None:
        from optimize.capture.from_diffusers import capture_model
        from optimize.commands.models import load_model
        from optimize.recipes.zoo.digits_data import load_digits_data
        from optimize.recipes.zoo.digits_judge import DigitsJudge

        zoo = load_model("zoo:digits-dit" + ("" if prediction == "flow" else f"-{prediction}"))
        self.program = capture_model(zoo.model, zoo.example_inputs, loop=zoo.loop)
        self.judge = DigitsJudge.fit(load_digits_data())

    def sample(self, seed: int, count: int = SAMPLES, **options: Any) -> Any:
        """Images of labels 0, 1 … 9, 0 …, [count, 1, 32, 32], of a solver with these options."""
        import numpy as np
        import torch

        from optimize.passes.fuse_solver import FuseSolver
        from optimize.runtime.session import load

        program = FuseSolver(**options).rewrite(self.program).program
        with tempfile.TemporaryDirectory() as folder:
            session = load(program.export(Path(folder) / "bundle"), threads=2)
            labels = np.arange(count) % 10
            parts = [
                session(class_labels=labels[first : first + BATCH], seed=seed * 1000 + first)
                for first in range(0, count, BATCH)
            ]
        return torch.from_numpy(np.concatenate([part["latent"] for part in parts]))

    def frechet(self, images: Any) -> float:
        """Fréchet distance to real digits."""
        return float(self.judge.frechet(images))


# (name, options): the solvers whose calls are counted.
COUNTED: Sequence[tuple[str, Figures]] = (
    ("euler", {"solver": "euler"}),
    ("heun", {"solver": "heun"}),
    ("adams_bashforth 2", {"solver": "adams_bashforth", "order": 2}),
    ("dpm_solver_pp 2M", {"solver": "dpm_solver_pp", "order": 2}),
    ("dpm_solver_pp 3M", {"solver": "dpm_solver_pp", "order": 3}),
    ("dpm_solver_pp 2S", {"solver": "dpm_solver_pp_singlestep", "order": 2}),
    ("unipc 2", {"solver": "unipc", "order": 2}),
)


def calls_needed() -> Figures:
    """Calls at which each solver reaches the Fréchet distance of 50 Euler steps."""
    digits = Digits()
    target = digits.frechet(digits.sample(0, solver="euler", steps=50))
    needed: dict[str, int | None] = {}
    distances: dict[str, dict[int, float]] = {}
    for name, options in COUNTED:
        distances[name], needed[name] = {}, None
        for calls in CALLS:
            distance = digits.frechet(digits.sample(0, steps=calls, **options))
            distances[name][calls] = distance
            print(
                f"{name:20} {calls:3} calls  Fréchet {distance:.3f} ({target:.3f})", file=sys.stderr
            )
            if distance <= target:
                needed[name] = calls
                break
    ours = [calls for name, calls in needed.items() if name.startswith("dpm_solver_pp") and calls]
    return {
        "calls_ratio_dpmpp": 50 / min(ours) if ours else 0.0,
        "frechet_of_50_euler_steps": target,
        "calls_needed": needed,
        "frechet_by_calls": distances,
    }


def dualfast() -> Figures:
    """Distance to the exact solution with DualFast and without, at few calls, over five seeds."""
    import numpy as np

    from optimize.measure.quality import trajectory_distance
    from optimize.recipes.zoo.digits_data import flatten_images

    digits, count = Digits(), 100
    ratios: dict[int, list[float]] = {calls: [] for calls in FEW_CALLS}
    frechet: dict[int, list[float]] = {calls: [] for calls in FEW_CALLS}
    base: Figures = {"solver": "dpm_solver_pp", "order": 2}
    for seed in range(SEEDS):
        exact = digits.sample(seed, count, solver="adams_bashforth", order=3, steps=50)
        for calls in FEW_CALLS:
            plain = digits.sample(seed, count, steps=calls, **base)
            mixed = digits.sample(seed, count, steps=calls, dualfast=DUALFAST, **base)
            distances = [
                trajectory_distance(flatten_images(item), flatten_images(exact)).value
                for item in (plain, mixed)
            ]
            ratios[calls].append(distances[0] / distances[1])
            frechet[calls].append(digits.frechet(plain) / digits.frechet(mixed))
    figures: Figures = {}
    for calls in FEW_CALLS:
        gains = np.array(ratios[calls])
        spread = 2.776 * gains.std(ddof=1) / np.sqrt(SEEDS)  # Student's t, 4 degrees of freedom
        figures[f"dualfast_gain_{calls}"] = float(gains.mean())
        figures[f"dualfast_gain_{calls}_interval"] = [
            float(gains.mean() - spread), float(gains.mean() + spread)
        ]  # fmt: skip
        figures[f"dualfast_frechet_gain_{calls}"] = float(np.mean(frechet[calls]))
    return figures


def guidance() -> Figures:
    """Third order at guidance 7.5: noise form against data form; and thresholding of pixels."""
    return {}


PARTS: dict[str, Callable[[], Figures]] = {
    "orders": orders,
    "agreement": agreement,
    "calls_needed": calls_needed,
    "dualfast": dualfast,
    "guidance": guidance,
}


if __name__ == "__main__":
    run_parts(__doc__, "solvers", PARTS, ("torch", "onnxruntime", "diffusers", "numpy"))
