"""The laws of masked texts of three tokens, enumerated from a denoiser's table.

A state is a text of three tokens in {0, 1, 2, mask}; a law is a vector over the 64 states, and one
call of a loop is a matrix of 64 x 64. Everything here is numpy and independent of the code tested.
"""

from collections.abc import Sequence
from itertools import combinations, product
from math import comb
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from optimize.ir.program import Program

LENGTH, KINDS = 3, 3
MASK = KINDS
STATES = list(product(range(KINDS + 1), repeat=LENGTH))
NUMBERS = {state: number for number, state in enumerate(STATES)}
START = NUMBERS[(MASK,) * LENGTH]
MASKS = np.array([state.count(MASK) for state in STATES])

Array = NDArray[np.float64]


class TableDenoiser(nn.Module):
    """Logits [B, S, V] looked up from the whole state.

    Args:
        logits: [64, 3, 3] of every state, token and kind.
    """

    def __init__(self, logits: Array) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(logits).float().flatten(0, 1))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        state = (input_ids * (KINDS + 1) ** (LENGTH - 1 - places)).sum(-1, keepdim=True)
        rows = (state * LENGTH + places).clamp(0, len(STATES) * LENGTH - 1)
        return nn.functional.embedding(rows, self.table)


def random_logits(seed: int = 0, scale: float = 2.0) -> Array:
    """Of every state, token and kind, independent of one another, [64, 3, 3]."""
    made = np.random.default_rng(seed).normal(scale=scale, size=(len(STATES), LENGTH, KINDS))
    # What the table in float32 holds.
    return made.astype(np.float32).astype(np.float64)


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def reveals(logits: Array) -> list[Array]:
    """Item k, [64, 64]: state → state with k masks fewer, summed over which k these are."""
    shares = softmax(logits)
    found = [np.zeros((len(STATES),) * 2) for _ in range(LENGTH + 1)]
    for number, state in enumerate(STATES):
        masked = [place for place, token in enumerate(state) if token == MASK]
        for count in range(len(masked) + 1):
            for places in combinations(masked, count):
                for tokens in product(range(KINDS), repeat=count):
                    after = list(state)
                    for place, token in zip(places, tokens, strict=True):
                        after[place] = token
                    chance = shares[number, places, tokens].prod()
                    found[count][number, NUMBERS[tuple(after)]] += chance
    return found


def start(template: Sequence[int] = STATES[START]) -> Array:
    """The law that is sure of one state."""
    return np.eye(len(STATES))[NUMBERS[tuple(template)]]


def first_hitting_law(
    logits: Array, groups: Sequence[int] = (1,) * LENGTH, law: Array | None = None
) -> Array:
    """Of masks drawn uniformly, so many in each call."""
    law, matrices = start() if law is None else law, reveals(logits)
    for group in groups:
        counts = np.minimum(group, MASKS)
        step = np.zeros_like(matrices[0])
        for state, count in enumerate(counts):
            step[state] = matrices[count][state] / comb(int(MASKS[state]), int(count))
        law = law @ step
    return law


def ancestral_law(logits: Array, steps: int) -> Array:
    """Of a coin for every mask, with chance 1 / (steps left)."""
    law, matrices = start(), reveals(logits)
    for step in range(steps):
        chance = 1 / (steps - step)
        law = sum(
            (law * chance**count * (1 - chance) ** np.maximum(MASKS - count, 0)) @ matrix
            for count, matrix in enumerate(matrices)
        )
    return law


def distance(first: Array, second: Array) -> float:
    """Total variation."""
    return float(np.abs(first - second).sum() / 2)


def named(law: Array) -> dict[tuple[int, ...], float]:
    """Text → probability, of whole texts that can be."""
    assert law[MASKS > 0].sum() < 1e-12
    return {state: float(law[number]) for number, state in enumerate(STATES) if law[number] > 0}


def noise(program: Program, batch: int, seed: int) -> dict[str, Array]:
    """Numbers for all that a program draws, equal for equal names; faster than by its own seed."""
    found = {}
    for item in program.loop.noise:
        shape = tuple(batch if size == "batch" else size for size in item.shape)
        generator = np.random.default_rng([seed, crc32(item.name.encode())])
        found[item.name] = generator.random((item.steps, *shape)).clip(1e-300)
    return found


def filled_in(
    program: Program, template: Sequence[int], seed: int, batch: int
) -> dict[str, torch.Tensor]:
    """What a program makes of so many times the same masked text."""
    given = {"template": np.tile(template, (batch, 1)), **noise(program, batch, seed)}
    return program(**given)
