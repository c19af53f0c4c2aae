"""Sequence parallel with tile attention: 1, 2 and 4 processes on a video transformer, on CPUs.

    python benchmarks/tile_attention_parallel.py

Each number of processes is one start over gloo, all on the same seed and weights. The figures are
FLOPs, bytes and differences, which do not depend on the machine; there is no time among them.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.process_group import process_group
from optimize.ir.program import Program
from optimize.ir.token_axis import SDPA
from optimize.kernels import catalog as _kernels  # noqa: F401
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.shard_sequence import ShardSequence

ROOT = Path(__file__).parents[1]
PROCESSES = (1, 2, 4)
FRAMES, HEIGHT, WIDTH = 8, 24, 32
"""Of the latent; patches are 1 x 2 x 2, so 8 frames of 192 tokens."""
REFERENCES = [0, 4]
CHANNELS, HEADS, BLOCKS, STEPS = 128, 4, 2, 2


class Block(nn.Module):
    """Attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(2))
        self.query_key_value = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.out = nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.query_key_value(self.norms[0](x)).unflatten(-1, (3, HEADS, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class VideoTransformer(nn.Module):
    """A plain video transformer without text."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, CHANNELS, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.pixels = nn.Linear(CHANNELS, 16)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2) + timestep[:, None, None]
        for block in self.blocks:
            x = block(x)
        x = self.pixels(x).reshape(-1, FRAMES, HEIGHT // 2, WIDTH // 2, 4, 2, 2)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(-1, 4, FRAMES, HEIGHT, WIDTH)


def tiled_program() -> Program:
    """The transformer in a loop, with tile attention."""
    torch.manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 4, FRAMES, HEIGHT, WIDTH),
        "timestep": torch.tensor([0.5]),
    }
    loop = DenoiseLoop(prediction="flow", steps=STEPS)
    program = capture(VideoTransformer().eval(), inputs, loop=loop)
    graph = program.graphs["denoiser"].copied()
    for node in graph.graph.nodes:
        if node.target is SDPA:
            node.target = torch.ops.optimize.tile_attention.default
            node.args = (*node.args[:3], FRAMES, HEIGHT * WIDTH // 4, REFERENCES)
    graph.module.recompile()
    return replace(program, graphs={**program.graphs, "denoiser": graph})


def parallel() -> dict[str, Any]:
    """Figures of 1, 2 and 4 processes.

    Returns:
        `parallel_error`: largest difference of a sample to that of one process, relative to the
        largest value; `parallel_flop_scaling_min`: smallest share of ideal FLOP scaling;
        `parallel_processes`: a row per number of processes, see `shard_sequence.per_process`.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {count: Path(folder) / f"{count}.pt" for count in PROCESSES}
        for count, file in files.items():
            _start(count, file)
        found = {count: torch.load(file) for count, file in files.items()}
    reference = found[1]["latent"]
    rows = [item["row"] for item in found.values()]
    return {
        "parallel_error": max(
            float((item["latent"] - reference).abs().max() / reference.abs().max())
            for item in found.values()
        ),
        "parallel_flop_scaling_min": min(row["flop_scaling"] for row in rows),
        "parallel_processes": rows,
    }


def _start(processes: int, file: Path) -> None:
    """Runs the processes of one group; rank 0 writes the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", str(file)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"{processes} processes: found exit codes {codes}, expected 0")


def _work(file: Path) -> None:
    """One process: the sample and the row of the table."""
    processes = int(os.environ["WORLD_SIZE"])
    with process_group(processes) as rank:
        sharded = ShardSequence(processes).rewrite(tiled_program())
        fused = FuseSolver().rewrite(sharded.program).program
        latent = fused(seed=0)["latent"]
    if rank == 0:
        torch.save({"latent": latent, "row": sharded.details["per_process"][-1]}, file)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        _work(Path(sys.argv[-1]))
    else:
        print(json.dumps(parallel(), indent=2))
