"""Tokens per second of a session beside `generate` in eager PyTorch and optimum-onnx's export."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from parts import Figures
from transformers import LlamaConfig, LlamaForCausalLM

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.runtime import load

PROMPT, TOKENS, THREADS, REPEATS = 64, 64, 2, 5
SIZES = {"small": (256, 6), "medium": (512, 12)}
"""Width and layers of a Llama; the weights of the small one fit into the processor's cache."""
HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path("build/optimum")

Answer = tuple[float, list[int]]


def tokens() -> Figures:
    """Median of paired ratios of whole requests: prefill and all tokens."""
    torch.set_num_threads(THREADS)
    python = _environment()
    figures: Figures = {}
    for size, (width, layers) in SIZES.items():
        figures |= {f"{name}_{size}": value for name, value in _compared(python, width, layers)}
    for name in ("tokens_vs_generate", "tokens_vs_optimum"):
        figures[name] = figures[f"{name}_small"]
    return figures


def _compared(python: Path, width: int, layers: int) -> list[tuple[str, float]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(3, 4000, (1, PROMPT))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        program = capture_decoder(parts_of(model), DecodeLoop(128, TOKENS))
        program.export(f"{folder}/bundle")
        session = load(f"{folder}/bundle", threads=THREADS)
        command = [str(python), "-W", "ignore", str(HERE / "optimum_worker.py")]
        with subprocess.Popen(
            [*command, f"{folder}/model", str(TOKENS), str(THREADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as worker:
            assert worker.stdin is not None and worker.stdout is not None
            while worker.stdout.readline().strip() != "ready":
                if worker.poll() is not None:
                    raise RuntimeError("optimum_worker.py: found no answer, expected 'ready'")

            def optimum() -> Answer:
                worker.stdin.write(json.dumps(prompt[0].tolist()) + "\n")  # type: ignore[union-attr]
                worker.stdin.flush()  # type: ignore[union-attr]
                seconds, answer = json.loads(worker.stdout.readline())  # type: ignore[union-attr]
                return seconds, answer

            def eager() -> Answer:
                options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "pad_token_id": 0}
                start = time.perf_counter()
                answer = model.generate(prompt, do_sample=False, **options)
                return time.perf_counter() - start, answer[0, PROMPT:].tolist()

            def ours() -> Answer:
                start = time.perf_counter()
                answer = session(input_ids=prompt.numpy())["tokens"]
                return time.perf_counter() - start, np.asarray(answer)[0].tolist()

            ways = {"ours": ours, "generate": eager, "optimum": optimum}
            return _measured(ways)


def _measured(ways: dict[str, Callable[[], Answer]]) -> list[tuple[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(REPEATS + 1):
        answers = {name: call() for name, call in ways.items()}
        if len({tuple(answer) for _, answer in answers.values()}) != 1:
            raise RuntimeError("tokens: found different answers, expected the same of all three")
        if number:
            for name, (seconds, _) in answers.items():
                times[name].append(seconds)

    def ratio(other: str) -> float:
        pairs = zip(times[other], times["ours"], strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    speeds = [(f"tokens_per_second_{k}", TOKENS / statistics.median(v)) for k, v in times.items()]
    return [
        ("tokens_vs_generate", ratio("generate")),
        ("tokens_vs_optimum", ratio("optimum")),
    ] + speeds


def _environment() -> Path:
    """The Python of the peer's virtual environment, made when it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / ".installed"
    if not done.is_file():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        kept = [
            line
            for line in (HERE.parent / "constraints.txt").read_text().splitlines()
            if not line.startswith(("transformers", "diffusers", "tokenizers"))
        ]
        constraints = ENVIRONMENT / "constraints.txt"
        constraints.write_text("\n".join(kept) + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        subprocess.run([*pip, "torch==2.13.0"], check=True, stdout=sys.stderr)
        wanted = HERE / "requirements-optimum.txt"
        subprocess.run([*pip, "-r", str(wanted)], check=True, stdout=sys.stderr)
        done.touch()
    return python.absolute()
