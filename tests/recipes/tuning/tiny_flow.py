"""A tiny flow model for searches, as a MODEL argument: `tiny_flow.py:tiny`."""

import torch
from torch import nn

from optimize.ir.denoise import DenoiseLoop

STEPS = 20


class TinyFlow(nn.Module):
    """One self-attention block over 16 tokens of width four."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states * (1 + timestep[:, None, None])
        heads = tokens.reshape(tokens.shape[0], 1, 16, 4)
        attended = nn.functional.scaled_dot_product_attention(self.query(heads), heads, heads)
        return self.out(attended.squeeze(1)).tanh()


def tiny() -> tuple[nn.Module, dict[str, torch.Tensor], DenoiseLoop]:
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 16, 4), "timestep": torch.ones(2)}
    return TinyFlow().eval(), inputs, DenoiseLoop(steps=STEPS)
