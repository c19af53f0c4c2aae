"""The digits DiT with other heads: the same network on the variance-preserving path.

Every Gaussian path is the flow's, scaled: with s = sigma / (alpha + sigma) a variance-preserving
latent x is (alpha + sigma) times the flow's latent at s, so that velocity gives epsilon, v or the
clean value exactly. These models are for comparing solvers on one network; nothing was trained for
them.
"""

from __future__ import annotations

import torch
from torch import nn

from optimize.ir.denoise import Prediction
from optimize.ir.schedules import VarianceSchedule
from optimize.recipes.zoo.digits_dit import load_digits_dit
from optimize.recipes.zoo.digits_sampling import TIMESTEPS_PER_SIGMA

SCHEDULE = VarianceSchedule(
    beta_start=1e-4, beta_end=0.02, beta_schedule="linear", spacing="trailing"
)


class DigitsHead(nn.Module):
    """A flow network as one that predicts epsilon, v or the clean value.

    Args:
        flow: takes (hidden_states, timestep, class_labels) and returns the velocity.
        prediction: what this module returns.
    """

    log_levels: torch.Tensor

    def __init__(self, flow: nn.Module, prediction: Prediction) -> None:
        super().__init__()
        self.flow = flow
        self.prediction = prediction
        levels = torch.from_numpy(SCHEDULE.path.log_levels)
        self.register_buffer("log_levels", levels.float(), persistent=False)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor
    ) -> torch.Tensor:
        """The prediction at a noisy latent.

        Args:
            hidden_states: [B, 1, 32, 32], float32, alpha * digit + sigma * noise.
            timestep: [B], float32, in [0, 999]; between whole ones the log-SNR is linear.
            class_labels: [B], int64, in [0, 10].
        """
        alpha: torch.Tensor
        alpha, sigma = (item.view(-1, 1, 1, 1) for item in self._split(timestep))
        level = sigma / (alpha + sigma)
        latent = hidden_states / (alpha + sigma)
        velocity: torch.Tensor = self.flow(
            latent, level.view(-1) * TIMESTEPS_PER_SIGMA, class_labels
        )
        clean, noise = latent - level * velocity, latent + (1 - level) * velocity
        if self.prediction == "epsilon":
            return noise
        return clean if self.prediction == "denoised" else alpha * noise - sigma * clean

    def _split(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.log_levels.shape[0] - 1
        below = timestep.clamp(0, last).floor().clamp(max=last - 1)
        index = below.to(torch.int64)
        first, second = self.log_levels[index], self.log_levels[index + 1]
        level = (first + (timestep - below) * (second - first)).exp()
        alpha = torch.rsqrt(1 + level**2)
        return alpha, level * alpha


def load_digits_head(prediction: Prediction) -> DigitsHead:
    """The digits DiT with another head, in evaluation mode."""
    return DigitsHead(load_digits_dit(), prediction).eval()
