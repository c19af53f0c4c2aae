"""Many requests of many threads on one session: the same answers, and nothing that grows.

    python benchmarks/soak.py --out build/bench/soak.json

8 threads with 200 requests each, for the digits DiT in four steps, and for a small language model
whose answers are also streamed; each in a process of its own. Every answer is compared, bit for
bit, with the one that the same session gave before, to the same request alone. Memory, threads and
open files are those of the process: after a warm-up by the same threads, and at the end.
"""

import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import Figures, run_parts

from optimize.capture.capture_model import capture_model
from optimize.capture.from_decoder import Parts, capture_decoder
from optimize.commands.models import load_model
from optimize.ir.decode import DecodeLoop
from optimize.ir.denoise import DenoiseLoop
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.runtime import Session, load

THREADS, EACH, DISTINCT = 8, 200, 12

Answer = dict[str, np.ndarray]
Ask = Callable[[], Answer]


def soak(asks: Sequence[Ask], threads: int = THREADS, each: int = EACH) -> Figures:
    """Asks from several threads at once.

    Args:
        asks: distinct requests; each thread goes round them from another one on.
        threads: how many.
        each: requests of a thread.
    Returns:
        Requests, those whose answer differed, seconds, and by how much the resident memory (MiB),
        the threads and the open files grew after the warm-up.
    """
    expected = [ask() for ask in asks]
    together = threading.Barrier(threads)

    def one(thread: int, count: int) -> int:
        together.wait()
        numbers = [(thread + turn) % len(asks) for turn in range(count)]
        return sum(not same(asks[number](), expected[number]) for number in numbers)

    with ThreadPoolExecutor(threads) as pool:

        def round_of(count: int) -> int:
            return sum(pool.map(one, range(threads), [count] * threads))

        different = round_of(max(len(asks), each // 4))
        before = usage()
        start = time.perf_counter()
        different += round_of(each)
        seconds = time.perf_counter() - start
        after = usage()
    return {
        "requests": threads * each,
        "different": different,
        "seconds": seconds,
        "requests_per_second": threads * each / seconds,
        "rss_before_mib": before["rss_mib"],
        "rss_growth_mib": after["rss_mib"] - before["rss_mib"],
        "thread_growth": after["threads"] - before["threads"],
        "file_growth": after["files"] - before["files"],
    }


def same(found: Answer, expected: Answer) -> bool:
    """Whether two answers have the same arrays, bit for bit."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


def usage() -> dict[str, float]:
    """Of this process, on Linux: resident memory, threads, and open files."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def picture_asks(session: Session, field: str) -> list[Ask]:
    """Requests for pictures: batches of one to three, seeds and labels of their own."""

    def ask(number: int) -> Ask:
        labels = (np.arange(number % 3 + 1) + number) % 10
        return lambda: session(seed=number, **{field: labels})

    return [ask(number) for number in range(DISTINCT)]


def text_asks(session: Session, vocabulary: int, longest: int) -> list[Ask]:
    """Prompts of different lengths, one to three at once; every second answer is streamed."""
    random = np.random.default_rng(0)

    def ask(number: int) -> Ask:
        batch = number % 3 + 1
        tokens = random.integers(0, vocabulary, (batch, 2 + number % (longest - 1)))
        request = {"input_ids": tokens, "lengths": np.full(batch, tokens.shape[1])}
        if number % 2:
            return lambda: {"tokens": np.stack(list(session.stream(**request)), 1)}
        return lambda: session(**request)

    return [ask(number) for number in range(DISTINCT)]


def pictures() -> Figures:
    """The digits DiT in four steps."""
    model = load_model("zoo:digits-dit")
    program = capture_model(model.model, model.example_inputs, loop=DenoiseLoop(steps=4))
    return _figures("pictures", program, lambda session: picture_asks(session, "class_labels"))


def texts(vocabulary: int = 64, longest: int = 16, new: int = 8) -> Figures:
    """A small language model with random weights."""
    torch.manual_seed(0)
    model = RotaryLanguageModel(vocabulary, 64, 2, 4, 128, longest + new).eval()
    loop = DecodeLoop(max_prompt=longest, max_new_tokens=new)
    program = capture_decoder(Parts(model), loop)
    return _figures("texts", program, lambda session: text_asks(session, vocabulary, longest))


def _figures(name: str, program: Any, asks: Callable[[Session], list[Ask]]) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        path = program.export(Path(folder) / "bundle")
        with load(path, threads=1) as session:
            figures = soak(asks(session))
    return {f"{name}_{key}": value for key, value in figures.items()}


if __name__ == "__main__":
    run_parts(
        __doc__, "soak", {"pictures": pictures, "texts": texts}, ("numpy", "onnxruntime", "torch")
    )
