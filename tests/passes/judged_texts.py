"""What judges masked texts of three tokens, its law, and what becomes of candidates by it."""

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from optimize.recipes.zoo.tiny_decoder import TinyModel, tiny_model
from tests.passes.enumerated_reveals import KINDS, LENGTH, Array

TEXTS = list(product(range(KINDS), repeat=LENGTH))


def judge() -> TinyModel:
    """A decoder over the kinds of text, sure enough that its law is far from a product."""
    made = tiny_model(layers=1, width=16, heads=2, groups=1, dtype=torch.float32)
    made.decoder.head = nn.Linear(16, KINDS, bias=False)
    with torch.random.fork_rng():
        torch.manual_seed(25)
        made.decoder.embed = nn.Embedding(KINDS, 16)
        nn.init.normal_(made.decoder.head.weight, std=0.3)
    made.decoder.vocabulary = KINDS
    return made


@torch.no_grad()
def log_probabilities(decoder: nn.Module, texts: Any) -> Array:
    """log p(token | those before it), of texts [N, S]; [N, S - 1] float64."""
    ids = torch.as_tensor(texts)
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    logits = decoder(ids, torch.arange(ids.shape[1])[None], mask).double()
    return torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy()


def frequencies(texts: Any) -> Array:
    numbers = texts @ np.array([9, 3, 1])
    return np.bincount(numbers, minlength=len(TEXTS)) / len(texts)


def as_law(shares: Array) -> dict[tuple[int, ...], float]:
    return dict(zip(TEXTS, shares.tolist(), strict=True))


def of_two(base: Array, target: Array, sign: float = 1) -> Array:
    """The exact law of the one of two candidates that is kept."""
    weights = (target / base) ** sign
    pairs = base[:, None] * base / (weights[:, None] + weights)
    return 2 * (pairs * weights[:, None]).sum(1)
