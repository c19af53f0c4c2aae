"""A small convolutional network that restores degraded digits: trained, mean-reverting, 32x32.

Of `latent = degraded + alpha * (clean - degraded) + sigma * noise` it predicts the noise. Inside,
the network proper predicts a velocity, which a fixed combination with the latent turns into noise:
near timestep 100, where alpha is 0.005, a clean estimate made from the noise would otherwise
magnify the network's error by sigma / alpha = 39.

Source: Luo et al. (2023), Image restoration with mean-reverting stochastic differential equations,
section 3; Salimans and Ho (2022), section 4, for the velocity; Dhariwal and Nichol (2021), section
3, for the blocks.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from optimize.ir.mean_reverting import MeanRevertingSchedule
from optimize.recipes.zoo.digits_dit import TimestepEmbedding
from optimize.recipes.zoo.weights import with_weights

WEIGHTS_PATH = Path(__file__).with_name("digits_restore.safetensors")
WEIGHTS_SHA256 = "1a3ebeb5228d68463e6a5b9c51461c7748cba626487ccd7f2dbdca14fde33ace"

SCHEDULE = MeanRevertingSchedule()

_GROUPS = 8
_EMBEDDING_DIM = 96
_EMBEDDED_TIMESTEP = 1000.0  # what TimestepEmbedding expects of the last timestep
_IMAGE_MEAN = 0.3


def load_digits_restore(path: Path = WEIGHTS_PATH) -> DigitsRestorer:
    """Loads the trained model in evaluation mode.

    Args:
        path: the weights that come with `optimize`; their digest is checked.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that this code was released with.
    """
    return with_weights(DigitsRestorer(), path, WEIGHTS_SHA256)


class ResidualBlock(nn.Module):
    """Two convolutions around a shift and a scale by the condition, added to the input.

    Args:
        channels_in, channels_out: multiples of 8.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_GROUPS, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(_EMBEDDING_DIM, 2 * channels_out)
        self.norm_out = nn.GroupNorm(_GROUPS, channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1)
        )
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv_in(F.silu(self.norm_in(features)))
        hidden = self.conv_out(F.silu(self.norm_out(hidden) * (1 + scale) + shift))
        output: torch.Tensor = self.shortcut(features) + hidden
        return output


class DigitsRestorer(nn.Module):
    """Predicts the noise in a latent between a clean and a degraded digit.

    A U-Net of three resolutions, the finest being half the image's; a pixel of it holds 2x2.

    Args:
        width: channels of the finest resolution, a multiple of 8; the others have 2 and 3 times.
    Raises:
        ValueError: `width` is not such a multiple.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        if width < _GROUPS or width % _GROUPS:
            raise ValueError(
                f"DigitsRestorer: found width {width}, expected a multiple of {_GROUPS}; change it."
            )
        self.timestep_embedding = TimestepEmbedding(_EMBEDDING_DIM)
        self.stem = nn.Conv2d(2 * 4, width, 3, padding=1)
        self.fine_in = ResidualBlock(width, width)
        self.to_middle = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.middle_in = ResidualBlock(2 * width, 2 * width)
        self.to_coarse = nn.Conv2d(2 * width, 3 * width, 2, stride=2)
        self.coarse_in = ResidualBlock(3 * width, 3 * width)
        self.coarse_out = ResidualBlock(3 * width, 3 * width)
        self.middle_out = ResidualBlock(5 * width, 2 * width)
        self.fine_out = ResidualBlock(3 * width, width)
        self.head = nn.Conv2d(width, 4, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.timesteps: torch.Tensor
        self.register_buffer("timesteps", torch.arange(SCHEDULE.timesteps + 1.0), False)
        self.log_alphas: torch.Tensor
        log_alphas = torch.tensor(SCHEDULE.log_alphas, dtype=torch.float32)
        self.register_buffer("log_alphas", log_alphas, False)

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, degraded: torch.Tensor
    ) -> torch.Tensor:
        """Predicts the noise in each latent.

        Args:
            latent: [B, 1, H, W], float32, the noisy image at `timestep`, in data units; H and W
                are multiples of 8.
            timestep: [B], float32, in [0, 100].
            degraded: [B, 1, H, W], float32, in [0, 1].
        Returns:
            The noise, [B, 1, H, W], float32, of unit variance.
        """
        # Hat functions interpolate the table linearly, as the schedule does between timesteps.
        share = (1 - (timestep[:, None] - self.timesteps).abs()).clamp(min=0)
        alpha = (share * self.log_alphas).sum(dim=1).exp()[:, None, None, None]
        relative_sigma = (1 - alpha * alpha).sqrt()  # in units of the stationary sigma
        offset = (latent - degraded) / SCHEDULE.stationary_sigma
        return relative_sigma * offset + alpha * self._velocity(offset, timestep, degraded)

    def _velocity(
        self, offset: torch.Tensor, timestep: torch.Tensor, degraded: torch.Tensor
    ) -> torch.Tensor:
        """`alpha * noise - relative_sigma * (clean - degraded) / stationary_sigma`, [B, 1, H, W].

        Args:
            offset: [B, 1, H, W], `(latent - degraded) / stationary_sigma`.
        """
        embedded = timestep * (_EMBEDDED_TIMESTEP / SCHEDULE.timesteps)
        condition = F.silu(self.timestep_embedding(embedded))
        image = (degraded - _IMAGE_MEAN) / SCHEDULE.stationary_sigma
        pixels = F.pixel_unshuffle(torch.cat([offset, image], dim=1), 2)
        fine = self.fine_in(self.stem(pixels), condition)
        middle = self.middle_in(self.to_middle(fine), condition)
        coarse = self.coarse_in(self.to_coarse(middle), condition)
        coarse = self.coarse_out(coarse, condition)
        middle = self.middle_out(torch.cat([_doubled(coarse), middle], dim=1), condition)
        fine = self.fine_out(torch.cat([_doubled(middle), fine], dim=1), condition)
        return F.pixel_shuffle(self.head(fine), 2)


def _doubled(features: torch.Tensor) -> torch.Tensor:
    """Every pixel as 2x2 equal ones."""
    return F.interpolate(features, scale_factor=2.0, mode="nearest")
