"""Judges texts of zoo:masked-shakespeare: by an autoregressive model, and by their entropy."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from optimize.measure.quality import Interval, bootstrap_interval
from optimize.recipes.zoo.language_model_judge import windows_of
from optimize.recipes.zoo.masked_shakespeare import LENGTH, load_masked_shakespeare
from optimize.recipes.zoo.shakespeare import load_shakespeare
from optimize.recipes.zoo.shakespeare_data import END, VOCABULARY, load_held_out_play
from optimize.recipes.zoo.train_masked_shakespeare import bound

HELD_OUT_WINDOWS = 96


@dataclass(frozen=True)
class Quality:
    """How good a set of texts is; either alone can be had cheaply.

    Attributes:
        nats: per token, of the texts under zoo:shakespeare; exp of it is generative perplexity.
        entropy: of the tokens of a text, in nats, the mean over texts.
    """

    nats: Interval
    entropy: Interval

    def data(self) -> dict[str, Any]:
        """As figures, with 95 % intervals over texts."""
        return {
            "generative_perplexity": round(math.exp(self.nats.value), 2),
            "nats_per_token": [round(item, 4) for item in _three(self.nats)],
            "entropy": [round(item, 4) for item in _three(self.entropy)],
        }

    def is_no_worse(self, other: "Quality") -> bool:
        """Whether texts are as good as others within the 95 % intervals of the differences."""
        nats = self.nats.value - other.nats.value
        entropy = self.entropy.value - other.entropy.value
        return nats <= _noise(self.nats, other.nats) and entropy >= -_noise(
            self.entropy, other.entropy
        )


def quality(texts: torch.Tensor) -> Quality:
    """Of texts [B, L], int64."""
    judge, nats = load_shakespeare(), []
    for part in texts.split(8):
        whole = F.pad(part, (1, 0), value=END)
        with torch.no_grad():
            logits = judge.next_token_logits(whole[:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), part, reduction="none")
        nats += losses.mean(1).tolist()
    return Quality(_mean(nats), _mean([_entropy(text) for text in texts]))


def likelihood() -> dict[str, Any]:
    """The bound of the model and the unigram loss over the held-out play, and their difference.

    The unigram frequencies are those of the play itself, the lowest unigram loss there can be.
    """
    play = load_held_out_play()
    windows = windows_of(play, HELD_OUT_WINDOWS, LENGTH)
    model = bound(load_masked_shakespeare(), windows)
    shares = torch.bincount(windows.flatten(), minlength=VOCABULARY).double()
    shares = shares[shares > 0] / shares.sum()
    unigram = float(-(shares * shares.log()).sum())
    return {
        "bound_nats_per_token": model,
        "unigram_nats_per_token": unigram,
        "unigram_margin_nats": unigram - model,
    }


def _entropy(text: torch.Tensor) -> float:
    shares = torch.bincount(text).double() / len(text)
    shares = shares[shares > 0]
    return float(-(shares * shares.log()).sum())


def _mean(values: list[float]) -> Interval:
    return bootstrap_interval(np.asarray(values), lambda rows: float(rows.mean()), 1000, seed=0)


def _three(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _noise(one: Interval, other: Interval) -> float:
    halves = ((item.high - item.low) / 2 for item in (one, other))
    return math.hypot(*halves)
