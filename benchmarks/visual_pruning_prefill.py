"""Prefill of a LLaVA of 24 layers and width 512 with 729 image and 60 text tokens, one thread."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from parts import Figures
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.language_parts import parts_of
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.passes.prune_visual_tokens import PruneVisualTokens
from optimize.runtime import load
from optimize.runtime.onnx_engine import OnnxEngine

LAYERS, WIDTH, HIDDEN, IMAGE, TEXT = 24, 512, 1376, 729, 60
REPEATS = 9


def prefill() -> Figures:
    """Time of the whole prefill over that of the pruned one, as a share of the FLOP ratio."""
    torch.set_num_threads(1)
    whole = _program()
    item = PruneVisualTokens()
    rewritten = item.rewrite(whole)
    kept = rewritten.details["kept_at_most"]
    ratio = _operations([IMAGE] * 3, item.cuts(LAYERS)) / _operations(
        [IMAGE, *kept], item.cuts(LAYERS)
    )
    programs = {"whole": whole, "pruned": rewritten.program}
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 378, 378)
    inputs = {
        "input_ids": torch.randint(0, 999, (1, TEXT)),
        "lengths": torch.tensor([TEXT]),
        "max_new_tokens": torch.tensor([1]),
        **whole.graphs["vision"].run(whole.weights, {"pixel_values": pixels}),
    }
    figures: Figures = {"prefill_flop_ratio": ratio, "prefill_kept_tokens": kept}
    for engine, calls in (
        ("pytorch", {name: _compiled(each, inputs) for name, each in programs.items()}),
        ("onnx", {name: _session(each, inputs) for name, each in programs.items()}),
    ):
        speedup = _ratio(calls["whole"], calls["pruned"])
        figures[f"prefill_speedup_{engine}"] = speedup
        figures[f"prefill_efficiency_{engine}"] = speedup / ratio
    figures["prefill_efficiency"] = min(
        figures["prefill_efficiency_pytorch"], figures["prefill_efficiency_onnx"]
    )
    return figures


def _program() -> Program:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=378,
        patch_size=14,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=1024,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        max_position_embeddings=2048,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=1000)
    model = LlavaForConditionalGeneration(config).eval()
    return capture_decoder(parts_of(model, prefix=1), DecodeLoop(max_prompt=64, max_new_tokens=32))


def _operations(counts: list[int], cuts: tuple[int, ...]) -> float:
    """The formula of the paper, C(n) = 4 n d^2 + 2 n^2 d + 3 n d m, text tokens included."""
    starts = [0, *cuts, LAYERS]
    total = 0.0
    for first, last, count in zip(starts, starts[1:], counts, strict=False):
        n = count + TEXT
        total += (last - first) * (4 * n * WIDTH**2 + 2 * n**2 * WIDTH + 3 * n * WIDTH * HIDDEN)
    return total


def _compiled(program: Program, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    graph = program.graphs["prefill"]
    arguments = [
        program.weights[graph.weights[node.name]]
        if node.name in graph.weights
        else inputs[node.name]
        for node in graph.graph.nodes
        if node.op == "placeholder"
    ]
    module = torch.compile(graph.module)

    def call() -> object:
        with torch.no_grad():
            return module(*arguments)

    return call


def _session(program: Program, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    folder = Path(tempfile.mkdtemp()) / "bundle"
    program.export(folder)
    engine = OnnxEngine(load(folder, threads=1)._graphs)  # type: ignore[arg-type]
    given = {
        name: engine.upload(item.numpy(), str(item.dtype).removeprefix("torch."))
        for name, item in inputs.items()
    }
    outputs = dict.fromkeys(program.graphs["prefill"].outputs)
    return lambda: engine.run("prefill", given, outputs)


def _ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """Median of paired ratios of times, the two called in turns."""
    ratios = []
    for number in range(REPEATS + 2):
        times = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        if number >= 2:
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)
