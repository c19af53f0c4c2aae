"""The figures of the solvers: orders, agreement with diffusers, calls saved, overhead, loop forms.

    python benchmarks/solvers.py --out build/bench/solvers.json

Each part runs in a process of its own. `--part NAME` runs one of them and prints its figures.
Models are the zoo's, with committed weights; nothing is trained here.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from parts import Figures, run_parts

# The toy problems and comparisons are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SAMPLES = 360
BATCH = 60
CALLS = (5, 6, 8, 10, 12, 16, 20)
FEW_CALLS = (5, 6, 8)
SEEDS = 5
DUALFAST = 0.3
GUIDANCE = 7.5


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
        guidance: scale of guidance.
    """

    def __init__(self, prediction: str = "flow", guidance: float | None = None) -> None:
        from optimize.capture.capture_model import capture_model
        from optimize.commands.models import load_model
        from optimize.recipes.zoo.digits_data import load_digits_data
        from optimize.recipes.zoo.digits_judge import DigitsJudge

        zoo = load_model("zoo:digits-dit" + ("" if prediction == "flow" else f"-{prediction}"))
        assert zoo.loop is not None
        null = {} if guidance is None else {"class_labels": 10.0}
        loop = replace(zoo.loop, guidance_scale=guidance, null_values=null)
        self.program = capture_model(zoo.model, zoo.example_inputs, loop=loop)
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

    def accuracy(self, images: Any) -> float:
        """Share of images that the judge finds to be the digit asked for."""
        import torch

        return float(self.judge.accuracy(images, torch.arange(len(images)) % 10))


# The solvers whose calls are counted.
COUNTED: dict[str, Figures] = {
    "dpm_solver_pp 2M": {"solver": "dpm_solver_pp", "order": 2},
    "dpm_solver_pp 3M": {"solver": "dpm_solver_pp", "order": 3},
    "unipc 2": {"solver": "unipc", "order": 2},
    "adams_bashforth 2": {"solver": "adams_bashforth", "order": 2},
    "dpm_solver_pp 2S": {"solver": "dpm_solver_pp_singlestep", "order": 2},
    "heun": {"solver": "heun"},
}


def calls_needed() -> Figures:
    """Calls at which each solver reaches the Fréchet distance of 50 Euler steps."""
    digits = Digits()
    baseline = digits.sample(0, solver="euler", steps=50)
    target = digits.frechet(baseline)
    accuracy = {"euler, 50 calls": digits.accuracy(baseline)}
    needed: dict[str, int | None] = {}
    distances: dict[str, dict[int, float]] = {}
    for name, options in COUNTED.items():
        distances[name], needed[name] = {}, None
        for calls in CALLS:
            images = digits.sample(0, steps=calls, **options)
            distance = distances[name][calls] = digits.frechet(images)
            print(
                f"{name:20} {calls:3} calls  Fréchet {distance:.3f} ({target:.3f})", file=sys.stderr
            )
            if distance <= target:
                needed[name] = calls
                accuracy[name] = digits.accuracy(images)
                break
    ours = [calls for name, calls in needed.items() if name.startswith("dpm_solver_pp") and calls]
    return {
        "calls_ratio_dpmpp": 50 / min(ours) if ours else 0.0,
        "frechet_of_50_euler_steps": target,
        "calls_needed": needed,
        "judge_accuracy_there": accuracy,
        "frechet_by_calls": distances,
    }


def dualfast() -> Figures:
    """Distance to the exact solution with DualFast and without, at few calls, over five seeds."""
    import numpy as np

    from optimize.measure.quality import trajectory_distance
    from optimize.recipes.zoo.digits_data import flatten_images

    digits, count = Digits("epsilon"), 100
    ratios: dict[int, list[float]] = {calls: [] for calls in FEW_CALLS}
    frechet: dict[int, list[float]] = {calls: [] for calls in FEW_CALLS}
    base: Figures = {"solver": "dpm_solver_pp", "order": 2, "schedule": "time"}
    for seed in range(SEEDS):
        exact = digits.sample(seed, count, steps=50, **{**base, "order": 3})
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
    """Third order at guidance 7.5: noise form against data form; and thresholding of pixels.

    Distances are to the exact guided solution from the same noise; "beyond" is the share of pixels
    outside [-1.05, 1.05], where no digit has any.
    """
    digits, count, calls = Digits("epsilon", GUIDANCE), 60, 12
    digits_plain = {"steps": calls, "schedule": "time"}
    fine: Figures = {"solver": "dpm_solver_pp", "order": 2, "schedule": "time", "steps": 150}
    exact = digits.sample(0, count, **fine)
    exact_clipped = digits.sample(0, count, thresholding=0.995, **fine)
    ways: dict[str, Figures] = {
        "noise 1": {"solver": "ddim"},
        "noise 2M": {"solver": "dpm_solver", "order": 2},
        "noise 3M": {"solver": "dpm_solver", "order": 3},
        "noise 3S": {"solver": "dpm_solver_singlestep", "order": 3},
        "data 2M": {"solver": "dpm_solver_pp", "order": 2},
        "data 3M": {"solver": "dpm_solver_pp", "order": 3},
        "data 3S": {"solver": "dpm_solver_pp_singlestep", "order": 3},
        "data 2M, thresholded": {"solver": "dpm_solver_pp", "order": 2, "thresholding": 0.995},
    }
    found: Figures = {}
    for name, options in ways.items():
        images = digits.sample(0, count, **digits_plain, **options)
        reference = exact_clipped if "thresholding" in options else exact
        found[name] = {
            "rms": float((images - reference).square().mean().sqrt()),
            "largest": float(images.abs().max()),
            "beyond": float((images.abs() > 1.05).float().mean()),
            "frechet": digits.frechet(images),
        }
        print(f"{name:22} {found[name]}", file=sys.stderr)
    return {"guidance": found}


def restore() -> Figures:
    """The MR Sampler against the native samplers of mean-reverting diffusion, PSNR in dB."""
    import torch

    from optimize.capture.capture_model import capture_model
    from optimize.commands.models import load_model
    from optimize.passes.fuse_solver import FuseSolver
    from optimize.recipes.zoo.digits_data import load_digits_data
    from optimize.recipes.zoo.digits_degradation import degraded_digits, image_psnr
    from optimize.recipes.zoo.digits_restore_sampling import sample_euler, sample_posterior
    from optimize.runtime.session import load

    torch.set_num_threads(2)
    zoo = load_model("zoo:digits-restore")
    pairs = degraded_digits(load_digits_data().held_out, seed=0)
    native = {
        "posterior": sample_posterior(zoo.model, pairs.degraded, 1),
        "euler": sample_euler(zoo.model, pairs.degraded, 1),
    }
    decibels = {name: float(image_psnr(item, pairs.clean).mean()) for name, item in native.items()}
    program = capture_model(zoo.model, zoo.example_inputs, loop=zoo.loop)
    reached = []
    ways: dict[str, Figures] = {
        "ode 1": {"order": 1},
        "ode 2, ends clean": {"order": 2, "schedule": "time"},
        "sde 1": {"order": 1, "eta": 1.0},
    }
    for name, options in ways.items():
        for calls in (5, 10, 20):
            fused = FuseSolver(solver="mr_sampler", steps=calls, **options).rewrite(program).program
            with tempfile.TemporaryDirectory() as folder:
                session = load(fused.export(Path(folder) / "bundle"), threads=2)
                found = session(degraded=pairs.degraded.numpy(), seed=1)["latent"]
            value = float(image_psnr(torch.from_numpy(found), pairs.clean).mean())
            decibels[f"{name}, {calls} calls"] = value
            print(f"{name:20} {calls:3} calls  {value:.2f} dB", file=sys.stderr)
            if value >= max(decibels["posterior"], decibels["euler"]) - 0.1:
                reached.append(calls)
    return {"mrs_calls_ratio": 100 / min(reached) if reached else 0.0, "restore_psnr_db": decibels}


def crystals() -> Figures:
    """The Bayesian flow over angles against a diffusion model of the same network and training.

    The ratio is of calls: those at which the ancestral baseline matches as many structures as the
    flow with its ten. What more calls buy the baseline stands in the model card.
    """
    import numpy as np
    import torch

    from optimize.recipes.zoo.crystal_data import load_crystals
    from optimize.recipes.zoo.crystal_diffusion import sample_diffusion
    from optimize.recipes.zoo.crystal_flow import sample_flow
    from optimize.recipes.zoo.crystal_match import matches
    from optimize.recipes.zoo.torus_crystals import (
        FLOW_STEPS,
        load_crystal_diffusion,
        load_torus_crystals,
    )

    torch.set_num_threads(2)
    held_out = load_crystals().held_out
    made = sample_flow(load_torus_crystals(), held_out, np.random.default_rng(1))
    flow = float(matches(held_out, made).mean())
    rates: dict[str, float] = {f"flow, {FLOW_STEPS} calls": flow}
    needed = 0
    network = load_crystal_diffusion()
    for calls in (6, 8, 10, 12, 14, 16, 20, 50):
        made = sample_diffusion(network, held_out, np.random.default_rng(1), calls)
        rates[f"diffusion, {calls} calls"] = rate = float(matches(held_out, made).mean())
        print(f"diffusion {calls:3} calls  {rate:.3f} of {flow:.3f}", file=sys.stderr)
        if rate >= flow:
            needed = calls
            break
    return {"crysbfn_calls_ratio": needed / FLOW_STEPS, "crystal_match_rates": rates}


def forms() -> Figures:
    """The loop as steps, unrolled, and as one ONNX `Loop`: differences and time; step overhead."""
    import torch
    from solver_forms import compare_forms, digits_program, step_overhead, stochastic_program

    torch.set_num_threads(1)
    figures: Figures = {"loop_forms_error": 0.0, "loop_forms": {}}
    programs: dict[str, tuple[Any, Figures]] = {
        "digits-dit, 10 steps": (digits_program(), {"class_labels": [7]}),
        "stochastic, 20 steps": (stochastic_program(), {"batch": 2}),
    }
    for title, (program, request) in programs.items():
        found = compare_forms(program, repeats=21, seed=0, **request)
        base = found["step"].seconds
        figures["loop_forms"][title] = {name: base / item.seconds for name, item in found.items()}
        error = max(item.difference for item in found.values())
        figures["loop_forms_error"] = max(figures["loop_forms_error"], error)
    overhead = step_overhead()
    figures["step_microseconds"] = {name: 1e6 * item for name, item in overhead.items()}
    figures["step_overhead_ratio"] = overhead["diffusers"] / overhead["step"]
    return figures


PARTS: dict[str, Callable[[], Figures]] = {
    "orders": orders,
    "agreement": agreement,
    "calls_needed": calls_needed,
    "dualfast": dualfast,
    "guidance": guidance,
    "restore": restore,
    "crystals": crystals,
    "forms": forms,
}


if __name__ == "__main__":
    run_parts(__doc__, "solvers", PARTS, ("torch", "onnxruntime", "diffusers", "numpy"))
