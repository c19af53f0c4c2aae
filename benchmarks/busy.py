"""A load generator: products and memory traffic in bursts, from `python busy.py SEED` until killed.

Bursts and pauses last 0.3 s on average, exponentially distributed, as jobs of a shared machine.
"""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

MEAN_SECONDS = 0.3


@contextmanager
def busy_machine(generators: int) -> Iterator[None]:
    """Load generators beside what runs inside."""
    command = [sys.executable, __file__]
    processes = [subprocess.Popen([*command, str(seed)]) for seed in range(generators)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(seed: int) -> None:
    draw = random.Random(seed)
    small = np.ones((300, 300), np.float32)
    large = np.zeros(8_000_000, np.float32)
    while True:
        end = time.monotonic() + draw.expovariate(1 / MEAN_SECONDS)
        products = draw.random() < 0.5
        while time.monotonic() < end:
            if products:
                np.matmul(small, small)
            else:
                np.add(large, 1, out=large)
        time.sleep(draw.expovariate(1 / MEAN_SECONDS))


if __name__ == "__main__":
    main(int(sys.argv[1]))
