"""A process of a search: `tune_worker.py STORAGE TRIALS CASE`; "kill" ends it in trial 6."""

import os
import signal
import sys
import time
from pathlib import Path

import optimize.api  # noqa: F401
from optimize.capture.from_denoiser import capture
from optimize.recipes.recipe import Budget
from optimize.recipes.tuning.tune import tune
from tests.recipes.tuning.tiny_flow import tiny

KILLED_IN = "trial 6"


def main(storage: str, trials: str, case: str) -> None:
    def tell(stage: str, done: int, total: int) -> None:
        if case == "kill" and stage == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "slow" and stage.startswith("trial"):
            time.sleep(0.3)

    model, inputs, loop = tiny()
    tune(
        capture(model, inputs, loop=loop),
        Budget(psnr=20),
        model="tiny",
        trials=int(trials),
        storage=Path(storage),
        progress=tell,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
