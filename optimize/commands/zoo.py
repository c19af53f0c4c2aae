"""The zoo's models as MODEL arguments: with example inputs and the loop they are sampled with."""

import random
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch

from optimize.commands.models import LoadedModel
from optimize.ir.denoise import DenoiseLoop, Prediction
from optimize.ir.torus_flow import TorusFlowLoop
from optimize.measure.quality import Interval
from optimize.recipes.zoo.arithmetic import arithmetic_program
from optimize.recipes.zoo.arithmetic_data import draw_problems
from optimize.recipes.zoo.crystal_data import load_crystals
from optimize.recipes.zoo.digits_data import IMAGE_SIZE, DigitsData, load_digits_data
from optimize.recipes.zoo.digits_degradation import degraded_digits
from optimize.recipes.zoo.digits_dit import load_digits_dit
from optimize.recipes.zoo.digits_heads import SCHEDULE as VARIANCE_SCHEDULE
from optimize.recipes.zoo.digits_heads import load_digits_head
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_restore import SCHEDULE, load_digits_restore
from optimize.recipes.zoo.digits_sampling import balanced_labels
from optimize.recipes.zoo.find_the_digit_data import held_out_scenes, localization
from optimize.recipes.zoo.find_the_digit_prompts import find_the_digit_program
from optimize.recipes.zoo.long_sums import long_sums_program
from optimize.recipes.zoo.long_sums_data import PROMPT_TOKENS, draw_texts
from optimize.recipes.zoo.masked_shakespeare import masked_shakespeare_program
from optimize.recipes.zoo.moving_digits import load_moving_digits
from optimize.recipes.zoo.moving_digits_data import FRAME_SIZE, FRAMES
from optimize.recipes.zoo.moving_digits_judge import MovingDigitsJudge
from optimize.recipes.zoo.shakespeare import held_out_prompts, shakespeare_program
from optimize.recipes.zoo.torus_crystals import (
    FLOW_STEPS,
    LARGEST_CONCENTRATION,
    load_torus_crystals,
)

BASELINE_STEPS = 50
EXAMPLE_BATCH = 2
EXAMPLE_SEED = 0
EXAMPLE_PROMPT = 32


def load_digits(name: str) -> LoadedModel:
    """The digits DiT with fifty Euler steps, its baseline."""
    loop = DenoiseLoop(steps=BASELINE_STEPS)
    return LoadedModel(
        name, load_digits_dit(), _digits_inputs(), loop, BalancedDigits(DigitsJudge.fit)
    )


def load_digits_with(prediction: Prediction, name: str) -> LoadedModel:
    """The digits DiT with another head, on the variance-preserving path, with fifty DDIM steps."""
    loop = DenoiseLoop(prediction=prediction, schedule=VARIANCE_SCHEDULE, steps=BASELINE_STEPS)
    model = load_digits_head(prediction)
    return LoadedModel(name, model, _digits_inputs(), loop, BalancedDigits(DigitsJudge.fit))


def _digits_inputs() -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.zeros(EXAMPLE_BATCH, 1, IMAGE_SIZE, IMAGE_SIZE),
        "timestep": torch.zeros(EXAMPLE_BATCH),
        "class_labels": torch.arange(EXAMPLE_BATCH),
    }


def load_restorer(name: str) -> LoadedModel:
    """The digits restorer with a step per training timestep, its baseline.

    Raises:
        ModuleNotFoundError: scikit-learn, which carries the example's digits, is not installed.
    """
    degraded = degraded_digits(load_digits_data().held_out, EXAMPLE_SEED).degraded[:EXAMPLE_BATCH]
    inputs = {
        "latent": torch.zeros_like(degraded),
        "timestep": torch.zeros(EXAMPLE_BATCH),
        "degraded": degraded,
    }
    loop = DenoiseLoop(
        latent="latent",
        prediction="epsilon",
        schedule=SCHEDULE,
        mean="degraded",
        steps=SCHEDULE.timesteps,
    )
    return LoadedModel(name, load_digits_restore(), inputs, loop)


class BalancedDigits:
    """As many of each digit, against the train split.

    Args:
        fit: makes the judge of such samples from the digits; called when one is first asked for.
    """

    def __init__(self, fit: Callable[[DigitsData], DigitsJudge | MovingDigitsJudge]) -> None:
        self.fit = fit

    @cached_property
    def judge(self) -> DigitsJudge | MovingDigitsJudge:
        """Fitted when first asked."""
        return self.fit(load_digits_data())

    def fields(self, first: int, count: int) -> Mapping[str, Any]:
        """Labels 0, 1, ..., 9, 0, ... from a place in that list on."""
        return {"class_labels": balanced_labels(first + count)[first:].numpy()}

    def frechet(self, samples: Any) -> Interval:
        """Of images [B, 1, 32, 32] or clips [B, 1, 8, 16, 16], an array."""
        return self.judge.frechet_interval(torch.from_numpy(samples))


def load_clips(name: str) -> LoadedModel:
    """The moving-digits DiT with fifty Euler steps, its baseline."""
    inputs = {
        "hidden_states": torch.zeros(EXAMPLE_BATCH, 1, FRAMES, FRAME_SIZE, FRAME_SIZE),
        "timestep": torch.zeros(EXAMPLE_BATCH),
        "class_labels": torch.arange(EXAMPLE_BATCH),
    }
    loop = DenoiseLoop(steps=BASELINE_STEPS)
    return LoadedModel(
        name, load_moving_digits(), inputs, loop, BalancedDigits(MovingDigitsJudge.fit)
    )


def load_crystal_flow(name: str) -> LoadedModel:
    """The crystal flow with the ten steps of its training; a request is elements and lattices."""
    crystals = load_crystals().held_out.rows(slice(0, EXAMPLE_BATCH))
    inputs = {
        "mean": torch.zeros(crystals.coordinates.shape),
        "concentration": torch.zeros(crystals.coordinates.shape),
        "step_index": torch.ones(EXAMPLE_BATCH),
        "atom_types": crystals.atom_types,
        "lattice": crystals.lattice,
    }
    loop = TorusFlowLoop(steps=FLOW_STEPS, last_concentration=LARGEST_CONCENTRATION)
    return LoadedModel(name, load_torus_crystals(), inputs, loop)


def load_digit_finder(name: str) -> LoadedModel:
    """The digit finder, asked where a digit stands in two scenes it has not seen."""
    scenes = held_out_scenes(load_digits_data().held_out, first=0, count=EXAMPLE_BATCH)
    inputs = {"pixel_values": scenes.pixels, "input_ids": localization(scenes).prompts}
    return LoadedModel(name, find_the_digit_program(), inputs)


def load_shakespeare_writer(name: str) -> LoadedModel:
    """The Shakespeare model at two passages of a play it has not seen."""
    inputs = {"input_ids": held_out_prompts(EXAMPLE_BATCH, EXAMPLE_PROMPT)}
    return LoadedModel(name, shakespeare_program(), inputs)


def load_arithmetic_worker(name: str) -> LoadedModel:
    """The model that works out sums, asked for two it has not seen."""
    problems = draw_problems(EXAMPLE_BATCH, random.Random(EXAMPLE_SEED), held_out=True)
    inputs = {"input_ids": torch.tensor([problem.prompt for problem in problems])}
    return LoadedModel(name, arithmetic_program(), inputs)


def load_masked_writer(name: str) -> LoadedModel:
    """The masked model of Shakespeare at two passages of a play it has not seen."""
    inputs = {"input_ids": held_out_prompts(EXAMPLE_BATCH, EXAMPLE_PROMPT)}
    return LoadedModel(name, masked_shakespeare_program(), inputs)


def load_long_adder(name: str) -> LoadedModel:
    """The model that adds long numbers, asked for two sums it has not seen."""
    texts = draw_texts(EXAMPLE_BATCH, random.Random(EXAMPLE_SEED), held_out=True)
    return LoadedModel(name, long_sums_program(), {"input_ids": texts[:, :PROMPT_TOKENS]})


LOADERS: Mapping[str, Callable[[str], LoadedModel]] = {
    "arithmetic": load_arithmetic_worker,
    "digits-dit": load_digits,
    "digits-dit-epsilon": partial(load_digits_with, "epsilon"),
    "digits-dit-v": partial(load_digits_with, "v"),
    "digits-restore": load_restorer,
    "find-the-digit": load_digit_finder,
    "long-sums": load_long_adder,
    "masked-shakespeare": load_masked_writer,
    "moving-digits": load_clips,
    "shakespeare": load_shakespeare_writer,
    "torus-crystals": load_crystal_flow,
}
"""Name after "zoo:" → what loads it, given the whole MODEL argument."""
