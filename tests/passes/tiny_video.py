"""A video denoiser whose tokens stand in any order, and which attends in any way."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.program import Program

FRAMES, HEIGHT, WIDTH, CHANNELS = 6, 2, 3, 4
ORDERS = {"frame-major": "fhw", "frames-last": "hwf", "frames-between": "hfw"}


class TinyVideo(nn.Module):
    """Three layers of attention over all tokens, without positions: order cannot change a result.

    Args:
        order: how tokens are numbered, slowest first, out of f, h and w.
        text: text tokens before the video's; 0 for none.
        attention: what is passed on to the attention.
        padding: rows of zeros behind the tokens.
    """

    def __init__(
        self, order="fhw", text=0, frames=FRAMES, attention=None, layers=3, padding=0
    ) -> None:
        super().__init__()
        self.order, self.text = order, text
        self.attention = attention or {}
        self.frames, self.padding = frames, padding
        self.words = nn.Parameter(torch.randn(1, text, CHANNELS))
        self.layers = nn.ModuleList(nn.Linear(CHANNELS, 3 * CHANNELS) for _ in range(layers))
        self.out = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        places = [2 + "fhw".index(letter) for letter in self.order]
        moved = hidden_states.permute(0, *places, 1)  # [B, ., ., ., C]
        rows = moved.reshape(moved.shape[0], self.frames * HEIGHT * WIDTH, CHANNELS)
        if self.text:
            rows = torch.cat([self.words.expand(rows.shape[0], -1, -1), rows], dim=1)
        if self.padding:
            rows = F.pad(rows, (0, 0, 0, self.padding))
        rows = rows * (1 + 1e-3 * timestep[:, None, None])
        for layer in self.layers:
            heads = layer(rows).unflatten(2, (3, 2, CHANNELS // 2)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*heads, **self.attention)
            rows = rows + mixed.transpose(1, 2).flatten(2)
        rows = self.out(rows[:, self.text : rows.shape[1] - self.padding])
        sizes = {"f": self.frames, "h": HEIGHT, "w": WIDTH}
        grid = rows.reshape(rows.shape[0], *(sizes[letter] for letter in self.order), CHANNELS)
        back = [1 + self.order.index(letter) for letter in "fhw"]
        return grid.permute(0, 4, *back)


def tiny_video(order="fhw", dtype=torch.float64, steps=4, **options) -> Program:
    """The same weights and example for the same options, whatever the order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyVideo(order, **options).to(dtype).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=1 / math.sqrt(CHANNELS))
        frames = options.get("frames", FRAMES)
        inputs = {
            "hidden_states": torch.randn(2, CHANNELS, frames, HEIGHT, WIDTH, dtype=dtype),
            "timestep": torch.zeros(2, dtype=dtype),
        }
    return capture(model, inputs, loop=DenoiseLoop(steps=steps))
