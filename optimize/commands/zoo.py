"""The zoo's models as MODEL arguments: with example inputs and the loop they are sampled with."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from optimize.commands.models import LoadedModel
from optimize.ir.denoise import DenoiseLoop
from optimize.measure.quality import Interval
from optimize.recipes.zoo.digits_data import load_digits_data
from optimize.recipes.zoo.digits_dit import load_digits_dit
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_sampling import balanced_labels

BASELINE_STEPS = 50
EXAMPLE_BATCH = 2
IMAGE_SIZE = 32


def load_digits(name: str) -> LoadedModel:
    """The digits DiT with fifty Euler steps, its baseline."""
    inputs = {
        "hidden_states": torch.zeros(EXAMPLE_BATCH, 1, IMAGE_SIZE, IMAGE_SIZE),
        "timestep": torch.zeros(EXAMPLE_BATCH),
        "class_labels": torch.arange(EXAMPLE_BATCH),
    }
    loop = DenoiseLoop(steps=BASELINE_STEPS)
    return LoadedModel(name, load_digits_dit(), inputs, loop, BalancedDigits())


class BalancedDigits:
    """As many of each digit, against the train split."""

    @cached_property
    def judge(self) -> DigitsJudge:
        """Fitted when first asked."""
        return DigitsJudge.fit(load_digits_data())

    def fields(self, first: int, count: int) -> Mapping[str, Any]:
        """Labels 0, 1, ..., 9, 0, ... from a place in that list on."""
        return {"class_labels": balanced_labels(first + count)[first:].numpy()}

    def frechet(self, samples: Any) -> Interval:
        """Of images [B, 1, 32, 32], an array."""
        return self.judge.frechet_interval(torch.from_numpy(samples))
