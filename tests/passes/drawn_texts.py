"""Texts that a program draws, held against the target's distribution of them.

The distribution is enumerated with the decoder as a plain module, without capture, cache or draft.
Of two prompts of unequal length half of each batch is drawn, so that samples go on at their own
pace in caches of different fill.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop, Sampling
from optimize.ir.program import Program
from optimize.recipes.zoo.tiny_decoder import TinyDecoder, TinyModel, tiny_model, tiny_request

TOKENS, KINDS, LENGTHS = 4, 3, (9, 6)
"""Tokens of a text, of which the prefill draws the first; tokens that are possible; of prompts."""

LOOP = DecodeLoop(max_prompt=10, max_new_tokens=TOKENS, sampling=Sampling(top_k=KINDS, top_p=None))

SIGNIFICANCE = 1e-9
"""Smallest p-value of texts that count as the target's; what is drawn wrongly is far below."""

RARE = 5.0
"""Texts expected less often than this are counted together."""


def pair() -> tuple[TinyModel, TinyModel]:
    """A target of two layers and the first of them as draft, right about every second time."""
    shape: dict[str, Any] = {"width": 16, "heads": 2, "groups": 1, "dtype": torch.float32}
    target, draft = tiny_model(layers=2, **shape), tiny_model(layers=1, **shape)
    state = target.decoder.state_dict()
    draft.decoder.load_state_dict({name: state[name] for name in draft.decoder.state_dict()})
    last: Any = target.decoder.blocks[1]
    with torch.no_grad():
        for linear in (last.out, last.down):
            linear.weight *= 0.5
    return target, draft


def captured(model: TinyModel) -> Program:
    """The program that draws texts."""
    return capture_decoder(model, LOOP)


@torch.no_grad()
def law(decoder: TinyDecoder, prompt: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Text → probability, of all texts that can follow a prompt [S]."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TOKENS):
        ids = torch.stack([torch.cat([prompt, torch.tensor(text).long()]) for text in texts])
        rows = ids.shape[1]
        mask = torch.ones(1, 1, rows, rows, dtype=torch.bool).tril()
        logits = decoder(ids, torch.arange(rows)[None], mask)[:, -1].double()
        likeliest, tokens = logits.topk(KINDS)
        shares = torch.softmax(likeliest, -1)
        texts = {
            (*text, int(token)): weight * float(share)
            for (text, weight), row, own in zip(texts.items(), tokens, shares, strict=True)
            for token, share in zip(row, own, strict=True)
        }
    return texts


@dataclass(frozen=True)
class Drawn:
    """Texts [N, TOKENS] behind each prompt, and the accepted counts of all rounds."""

    texts: tuple[np.ndarray, ...]
    accepted: np.ndarray

    @property
    def acceptance_rate(self) -> float:
        """Rounds that kept their first drafted token."""
        rounds = self.accepted[self.accepted >= 0]
        return float((rounds > 0).mean())


def copies(model: TinyModel, batch: int) -> dict[str, np.ndarray]:
    """A request of both prompts in turns."""
    request = tiny_request(model, LENGTHS).items()
    return {name: np.concatenate([value.numpy()] * (batch // 2)) for name, value in request}


def laws(model: TinyModel) -> list[dict[tuple[int, ...], float]]:
    """The law behind each prompt."""
    ids = tiny_request(model, LENGTHS)["input_ids"]
    return [law(model.decoder, row[:length]) for row, length in zip(ids, LENGTHS, strict=True)]


def drawn(run: Callable[..., Any], model: TinyModel, batch: int, seeds: int) -> Drawn:
    """What a program or session draws.

    Args:
        run: called with a request and a seed.
        batch: samples of a request, half of them behind each prompt.
        seeds: requests.
    """
    request = copies(model, batch)
    texts, accepted = [], []
    for seed in range(seeds):
        results = run(**request, seed=seed)
        texts.append(np.asarray(results["tokens"]))
        accepted.append(np.asarray(results.get("accepted", -1)).ravel())
    both = np.concatenate(texts)
    return Drawn((both[0::2], both[1::2]), np.concatenate(accepted))


def worst_p_value(found: Drawn, expected: Sequence[dict[tuple[int, ...], float]]) -> float:
    """The smaller p-value of both prompts."""
    pairs = zip(found.texts, expected, strict=True)
    return min(p_value(texts, law) for texts, law in pairs)


def p_value(texts: np.ndarray, expected: dict[tuple[int, ...], float]) -> float:
    """Of Pearson's chi-square test; 0 where a text is found that cannot be."""
    counts = dict.fromkeys(expected, 0)
    for text in map(tuple, texts.tolist()):
        if text not in counts:
            return 0.0
        counts[text] += 1
    means = np.array([share * len(texts) for share in expected.values()])
    found = np.array(list(counts.values()), float)
    rare = means < RARE
    if rare.any():
        found = np.append(found[~rare], found[rare].sum())
        means = np.append(means[~rare], means[rare].sum())
    return float(stats.chi2.sf(((found - means) ** 2 / means).sum(), len(means) - 1))
