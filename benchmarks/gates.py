"""How often perf gates are wrong, on a machine that is busy with something else.

A load generator runs beside every gate. A/A: a bundle against itself, 200 times; a failure is
false. A/B: a bundle whose loop has 21 or 22 steps of the same work instead of 20, 60 times each;
the costs, which see that at once, are ignored, so that times alone decide. Beside them
pytest-benchmark compares the same bundle with its own run before, failing from a median 5 % higher.

The cost model: predicted against measured ratios of request times, see `gates_cost.py`.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from busy import busy_machine
from gates_bundle import MORE_STEPS
from parts import Figures, run_parts

os.environ.setdefault("OMP_NUM_THREADS", "1")

SAME_RUNS, SLOWER_RUNS, PEER_RUNS = 200, 60, 40
GENERATORS = 1
SECONDS = 120.0

Outcome = tuple[str, float, float]
PEER_TEST = """
from optimize.measure.receipt import read_example
from optimize.runtime import load
import numpy as np

def test_request(benchmark):
    stored = read_example(np.fromfile("{bundle}/example.safetensors", np.uint8)).fields()
    session = load("{bundle}", threads=1)
    benchmark(lambda: session(**stored))
"""


def gates() -> Figures:
    """Error rates of gates and of pytest-benchmark, in turns on the same busy machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = Path(__file__).with_name("gates_bundle.py")
        # A process of its own, so that PyTorch is not in the memory of what is measured.
        subprocess.run([sys.executable, script, folder], check=True, stderr=subprocess.DEVNULL)
        with busy_machine(GENERATORS):
            peer = _Peer(folder)
            same = _outcomes(folder, "same", SAME_RUNS, peer)
            slower = {
                key: _outcomes(folder, key, SLOWER_RUNS, None)
                for key in MORE_STEPS
                if key != "same"
            }
    spent = [item for _, item, _ in (*same, *slower["slower_5"], *slower["slower_10"])]
    return {
        "false_failure_rate": _rate(same, "fail"),
        "inconclusive_rate": _rate(same, "inconclusive"),
        "power_5": _rate(slower["slower_5"], "fail"),
        "power_10": _rate(slower["slower_10"], "fail"),
        "pytest_benchmark_false_rate": peer.failures / PEER_RUNS,
        # What the steps more really cost: the median of all these gates' ratios.
        "slowdown_5": _median_slowdown(slower["slower_5"]),
        "slowdown_10": _median_slowdown(slower["slower_10"]),
        "gate_seconds_median": round(sorted(spent)[len(spent) // 2], 2),
        "gate_seconds_longest": round(max(spent), 2),
    }


def _rate(outcomes: list[Outcome], outcome: str) -> float:
    return sum(found == outcome for found, _, _ in outcomes) / len(outcomes)


def _median_slowdown(outcomes: list[Outcome]) -> float:
    return round(statistics.median(ratio for _, _, ratio in outcomes) - 1, 4)


def _outcomes(folder: Path, name: str, runs: int, peer: "_Peer | None") -> list[Outcome]:
    """Outcome, seconds and ratio of CPU times of each gate against the one with twenty steps."""
    from optimize.gate.gate import gate_bundle
    from optimize.gate.policy import LIMITS, METRICS, Policy

    times = ("cpu_time", "wall_time", "peak_memory")
    ignored = tuple(metric for metric in METRICS if metric not in times)
    # Costs are exact and would see more steps at once; times must see them alone.
    policy = Policy(limits=dict(LIMITS), ignore=ignored, seconds=SECONDS)
    outcomes = []
    for number in range(runs):
        start = time.monotonic()
        verdict = gate_bundle(folder / name, folder / "same", policy)
        ratio = verdict.check("cpu_time").ratio or math.nan
        outcomes.append((verdict.outcome, time.monotonic() - start, ratio))
        if verdict.outcome != ("pass" if name == "same" else "fail"):
            print(name, number, [c.message for c in verdict.checks[-3:]], file=sys.stderr)
        if peer is not None and number % (runs // PEER_RUNS) == 0:
            peer.run()
    return outcomes


class _Peer:
    """pytest-benchmark, each run against the one before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "peer"
        self.folder.mkdir()
        self.failures = self.runs = 0
        (self.folder / "test_request.py").write_text(PEER_TEST.format(bundle=folder / "same"))
        self._benchmark([])

    def run(self) -> None:
        """One comparison; a failure is false, as the bundle stayed the same."""
        if self.runs == PEER_RUNS:
            return
        self.runs += 1
        compare = ["--benchmark-compare", "--benchmark-compare-fail=median:5%"]
        self.failures += self._benchmark(compare) != 0

    def _benchmark(self, options: list[str]) -> int:
        given = ["--benchmark-autosave", "--benchmark-quiet", "-q", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *given, *options, "test_request.py"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0 and "Performance has regressed" not in done.stdout + done.stderr:
            raise RuntimeError(f"pytest-benchmark failed otherwise: {done.stdout}{done.stderr}")
        return done.returncode


def cost_model() -> Figures:
    """Error of predicted against measured ratios, of steps and of requests."""
    from gates_cost import cost_model_figures

    figures = cost_model_figures()
    rows = figures.pop("rows")
    return {
        "cost_model_error": figures["cost_model_step_median_error"],
        **{name: value for name, value in figures.items() if name.startswith("cost_model_")},
        "cost_model_rows": rows,
    }


PARTS = {"gates": gates, "cost_model": cost_model}

if __name__ == "__main__":
    packages = ("optimize", "numpy", "onnxruntime", "scipy", "pytest-benchmark", "torch")
    run_parts(__doc__, "gates", PARTS, packages)
