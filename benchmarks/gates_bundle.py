"""The bundles that gates are measured with: a small denoiser with twenty steps, and with more."""

import sys
from pathlib import Path

import torch
from torch import nn

WIDTH, TOKENS, BLOCKS = 96, 64, 2
STEPS = 20
MORE_STEPS = {"same": 20, "slower_5": 21, "slower_10": 22}
"""Name → steps: each step is the same work, so 21 take 5 % more than 20."""


class Block(nn.Module):
    """Attention and an MLP, both after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm_mlp(x))))


class Denoiser(nn.Module):
    """Predicts the flow of [B, 64, 96] latents."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.blocks(hidden_states + timestep[:, None, None] * 0.001)


def export_bundles(folder: Path) -> dict[str, Path]:
    """Name → folder of the bundle, for each of `MORE_STEPS`."""
    from optimize.capture.from_denoiser import capture
    from optimize.ir.denoise import DenoiseLoop

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Denoiser().eval()
    inputs = {"hidden_states": torch.randn(1, TOKENS, WIDTH), "timestep": torch.ones(1)}
    made = {}
    for name, steps in MORE_STEPS.items():
        program = capture(model, inputs, loop=DenoiseLoop(steps=steps))
        made[name] = program.export(folder / name, example=True)
    return made


if __name__ == "__main__":
    export_bundles(Path(sys.argv[1]))
