"""One process of several that share the tokens; rank 0 writes what it found as JSON.

    WORLD_SIZE=2 RANK=0 … python shard_worker.py CASE FILE

A case is a function of the number of processes that returns a dictionary.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optimize.capture.from_denoiser import capture
from optimize.export.bundle import export_bundle
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.process_group import process_group
from optimize.ir.program import Program
from optimize.ir.token_axis import SDPA
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.passes.shard_sequence import ShardSequence
from optimize.runtime.errors import OptimizeError

FRAMES, TEXT, WIDTH = 4, 3, 32
LOST_TIMEOUT_S = 8.0
DTYPES = (torch.float32, torch.float64)


class TinyVideo(nn.Module):
    """One block of joint attention over text and 4 frames of 2 x 3 tokens."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.pixels = nn.Linear(WIDTH, 16)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2) + timestep[:, None, None]
        x = torch.cat([text, x], 1)
        projected = self.query_key_value(nn.functional.silu(x))
        heads = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = (x + self.out(mixed.transpose(1, 2).flatten(2)))[:, TEXT:]
        x = self.pixels(x).reshape(-1, FRAMES, 2, 3, 4, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
        return x.reshape(-1, 4, FRAMES, 4, 6)


def tiny_program(heads: int, dtype: torch.dtype) -> tuple[Program, dict[str, torch.Tensor]]:
    """The tiny model in a loop of three steps, and a request."""
    torch.manual_seed(0)
    module = TinyVideo(heads).to(dtype).eval()
    inputs = {
        "hidden_states": torch.randn(2, 4, FRAMES, 4, 6, dtype=dtype),
        "timestep": torch.tensor([0.3, 0.5], dtype=dtype),
        "text": torch.randn(2, TEXT, WIDTH, dtype=dtype),
    }
    loop = DenoiseLoop(prediction="flow", steps=3)
    return capture(module, inputs, loop=loop), {"text": inputs["text"]}


def with_tiles(program: Program) -> Program:
    """The program with tile attention in the place of dense; frame 1 sees every frame."""
    graph = program.graphs["denoiser"].copied()
    for node in graph.graph.nodes:
        if node.target is SDPA:
            node.target = torch.ops.optimize.tile_attention.default
            node.args = (*node.args[:3], FRAMES, 6, [1], TEXT)
            node.kwargs = {}
    graph.module.recompile()
    return replace(program, graphs={**program.graphs, "denoiser": graph})


def difference(program: Program, item: ShardSequence, request: dict[str, Any]) -> float:
    """The relative error of a whole run, the solver fused, all checks of the pipeline on."""
    whole = program(seed=1, **request)["latent"]
    fused = run_passes(program, [item, FuseSolver()], calibration=[{**request, "seed": 0}])
    (record, _) = fused.history
    assert set(record.oracles) == {"shared_equals_whole", "identity"}
    shared = fused(seed=1, **request)["latent"]
    return float((shared - whole).abs().max() / whole.abs().max())


def tiny(processes: int) -> dict[str, Any]:
    """Errors by dtype and form, and reasons to decline."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        program, request = tiny_program(4, dtype)
        tiles = with_tiles(program)
        # Negative control: the tiles must matter.
        changed = tiles(seed=1, **request)["latent"] - program(seed=1, **request)["latent"]
        assert float(changed.abs().max()) > 1e-3
        heads, keys = (ShardSequence(processes, exchange) for exchange in ("heads", "keys"))
        name = str(dtype).removeprefix("torch.")
        found[f"heads {name}"] = difference(program, heads, request)
        found[f"keys {name}"] = difference(program, keys, request)
        found[f"tiles {name}"] = difference(tiles, heads, request)
    found["tiles keys"] = declined(tiles, keys)
    found["other size"] = ShardSequence(3).declines(program)
    one_head, _ = tiny_program(1, torch.float32)
    found["one head"] = declined(one_head, heads)
    rewritten = heads.rewrite(program)
    found["per_process"] = rewritten.details["per_process"]
    try:
        export_bundle(rewritten.program, Path("never"))
    except OptimizeError as error:
        found["export"] = str(error)
    return found


def declined(program: Program, item: ShardSequence) -> str:
    """The reason a pass gives when it is required."""
    try:
        run_passes(program, [item], verify=False)
    except OptimizeError as error:
        return str(error)
    return "did not decline"


def families(processes: int) -> dict[str, Any]:
    """Errors of model families."""
    from optimize.recipes.zoo.families import example

    found = {}
    for name in ("dit", "wan", "cogvideox", "hunyuanvideo"):
        for dtype in DTYPES:
            made = example(name, dtype=dtype)
            program = capture(made.module, made.inputs, loop=made.loop(3))
            error = difference(program, ShardSequence(processes), made.request())
            found[f"{name} {str(dtype).removeprefix('torch.')}"] = error
    return found


def lost(processes: int, how: signal.Signals) -> dict[str, Any]:
    """The last process writes the time, then ends or stops, after the first of three steps."""
    program, request = tiny_program(4, torch.float32)
    sharded = ShardSequence(processes).rewrite(program).program
    rank = int(os.environ["RANK"])

    def progress(done: int, total: int) -> None:
        if rank == processes - 1 and done == 1:
            Path(sys.argv[2]).write_text(str(time.time()))
            os.kill(os.getpid(), how)

    sharded(seed=1, progress=progress, **request)
    return {}


CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "tiny": tiny,
    "families": families,
    "killed": lambda processes: lost(processes, signal.SIGKILL),
    "stopped": lambda processes: lost(processes, signal.SIGSTOP),
}


def main() -> None:
    case, file = sys.argv[1:]
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    timeout_s = LOST_TIMEOUT_S if case in ("killed", "stopped") else 120.0
    try:
        with process_group(processes, timeout_s) as rank:
            found = CASES[case](processes)
    except OptimizeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if rank == 0:
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
