"""The fit of an energy head, on texts of two tokens whose laws are all known."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from optimize.capture.from_masked import capture_masked_model
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.ir.unmask import UnmaskLoop
from optimize.passes.energies.energy_head import EnergyHead
from optimize.passes.energies.energy_head_file import save_energy_head
from optimize.passes.energy_resample import EnergyResample
from optimize.recipes.fit.energy_head import (
    EnergyFitOptions,
    contrast,
    denoiser_logits,
    fit_energy_head,
    losses_by_share,
    pair_losses,
)
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel

KINDS, LENGTH = 3, 2
MASK = KINDS
LAW = torch.tensor([28, 2, 2, 2, 25, 5, 5, 1, 30], dtype=torch.float64) / 100
"""Probabilities of the texts 00, 01, …, 22: the second token mostly repeats the first."""

OPTIONS = EnergyFitOptions(steps=300, batch_size=256, rate=4e-3, average_decay=0.98)

Energy = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(candidates [n, G], masked text [G]) → [n]."""


def all_texts() -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(KINDS), repeat=LENGTH)))


def drawn_texts(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return all_texts()[torch.multinomial(LAW, count, True, generator=generator)]


def toy(max_prompt: int = 0) -> Program:
    """A denoiser that knows nothing of the texts; one call fills in all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedLanguageModel(KINDS, 16, 1, 2, 24).eval()
    loop = UnmaskLoop(
        mask_id=MASK,
        length=LENGTH,
        steps=1,
        remasking="random",
        sampling=Sampling(top_p=None),
        max_prompt=max_prompt,
    )
    return capture_masked_model(model, loop=loop)


@pytest.fixture(scope="module")
def program() -> Program:
    return toy()


@pytest.fixture(scope="module")
def head(program: Program) -> EnergyHead:
    return fit_energy_head(program, drawn_texts(20000), OPTIONS)


def log_laws(program: Program, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What may stand for a masked text [G], with log p and log q of each given the text."""
    fits = ((text == MASK) | (all_texts() == text)).all(-1)
    candidates = all_texts()[fits]
    rows = torch.log_softmax(denoiser_logits(program, text[None]).double(), -1)[0]
    own = rows[torch.arange(LENGTH), candidates]
    denoised = torch.where(text == MASK, own, 0.0).sum(-1)
    return candidates, denoised, torch.log(LAW[fits] / LAW[fits].sum())


def masked_texts() -> Iterator[torch.Tensor]:
    for tokens in itertools.product(range(KINDS + 1), repeat=LENGTH):
        if MASK in tokens:
            yield torch.tensor(tokens)


def expected_loss(program: Program, energy: Energy) -> float:
    """The loss of an energy, over all texts, masks and draws."""
    total = 0.0
    for text in masked_texts():
        masks = int((text == MASK).sum())
        fits = ((text == MASK) | (all_texts() == text)).all(-1)
        candidates, denoised, posterior = log_laws(program, text)
        values = energy(candidates, text)
        loss = -(posterior.exp() * logsigmoid(-values)).sum()
        loss = loss - (denoised.exp() * logsigmoid(values)).sum()
        total += float(loss * LAW[fits].sum()) / LENGTH / math.comb(LENGTH, masks)
    return total


def test_the_energy_becomes_the_difference_of_both_laws(program: Program, head: EnergyHead) -> None:
    """Measured: at most 0.21 from a constant for each masked text; what is learned goes over 3."""
    spread, apart = [], []
    for text in masked_texts():
        candidates, denoised, posterior = log_laws(program, text)
        target = denoised - posterior
        error = head(candidates, text[None], MASK) - target
        spread.append(float((error - error.mean()).abs().max()))
        apart.append(float(target.max() - target.min()))
    assert max(apart) > 3
    assert max(spread) < 0.3


def test_the_loss_falls_from_2_log_2_to_the_least_there_is(
    program: Program, head: EnergyHead
) -> None:
    def best(candidates: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        _, denoised, posterior = log_laws(program, text)
        return denoised - posterior

    def of(item: EnergyHead) -> Energy:
        return lambda candidates, text: item(candidates, text[None], MASK).detach()

    assert expected_loss(program, of(EnergyHead(program))) == pytest.approx(2 * math.log(2))
    least = expected_loss(program, best)
    assert least < 1.1
    assert least <= expected_loss(program, of(head)) < least + 0.01
    losses = losses_by_share(head, program, drawn_texts(4000, seed=9), parts=2)
    assert sum(losses) / 2 == pytest.approx(expected_loss(program, of(head)), abs=0.05)


def test_more_candidates_come_nearer_and_with_the_sign_turned_round_they_go_away(
    program: Program, head: EnergyHead, tmp_path: Path
) -> None:
    save_energy_head(head, program, tmp_path / "head")

    def resampled(candidates: int) -> Program:
        item = EnergyResample(str(tmp_path / "head"), candidates, energy="head")
        return item.rewrite(program).program

    def distance(after: Program) -> float:
        places = (after(batch=4096, seed=0)["tokens"] * torch.tensor([KINDS, 1])).sum(-1)
        found = torch.bincount(places, minlength=len(LAW)).double() / len(places)
        return float((found - LAW).abs().sum()) / 2

    four = resampled(4)
    score = "energy.score_weight"
    turned = replace(four, weights={**four.weights, score: -four.weights[score]})
    one, some, many = distance(resampled(1)), distance(four), distance(resampled(16))
    assert one > 0.3
    assert some < one - 0.1 and many < some - 0.05
    assert many < 0.12
    assert distance(turned) > one + 0.1


def test_the_head_is_shown_texts_and_what_the_denoiser_draws(program: Program) -> None:
    texts = drawn_texts(8192)
    shown = contrast(program, texts, torch.Generator().manual_seed(0))
    own, drawn = shown.candidates.view(-1, 2, LENGTH).unbind(1)
    hidden = shown.text == MASK
    assert torch.equal(own, texts) and shown.prompt is None
    assert torch.equal(drawn[~hidden], texts[~hidden]) and (drawn != MASK).all()
    assert torch.equal(hidden.sum(-1), shown.masks)
    assert torch.bincount(shown.masks).tolist() == [0, 4096, 4096]
    text = torch.full((LENGTH,), MASK)
    _, denoised, _ = log_laws(program, text)
    places = (drawn[shown.masks == LENGTH] * torch.tensor([KINDS, 1])).sum(-1)
    found = torch.bincount(places, minlength=len(LAW)).double() / len(places)
    assert float((found - denoised.exp()).abs().sum()) / 2 < 0.04


def test_every_weight_of_the_head_moves_and_the_denoisers_stay(program: Program) -> None:
    kept = {name: value.clone() for name, value in program.weights.items()}
    before = {name: value.clone() for name, value in EnergyHead(program).tensors().items()}
    head = fit_energy_head(program, drawn_texts(64), replace(OPTIONS, steps=4, batch_size=16))
    assert all(torch.equal(program.weights[name], value) for name, value in kept.items())
    still = [name for name, value in head.tensors().items() if torch.equal(value, before[name])]
    assert still == []


def test_texts_may_have_prompts_and_a_fit_can_be_repeated() -> None:
    program, texts = toy(max_prompt=3), drawn_texts(64).repeat(1, 2)
    shown = contrast(program, texts, torch.Generator().manual_seed(0))
    assert shown.prompt is not None and torch.equal(shown.prompt, texts[:, :LENGTH])
    options = replace(OPTIONS, steps=3, batch_size=8)
    first, second = (fit_energy_head(program, texts, options) for _ in range(2))
    losses = [pair_losses(item, program, shown) for item in (first, second)]
    assert torch.equal(*losses) and float(losses[0].std()) > 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), r"found shape \[4, 3\], expected \[N, S\]"),
        (torch.full((4, 2), MASK), "without the mask 3"),
        (torch.full((4, 2), -1), r"found tokens in \[-1, -1\]"),
    ],
    ids=["shape", "mask", "range"],
)
def test_refuses_texts_that_do_not_fit(program: Program, texts: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_energy_head(program, texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: found 0"),
        ({"rate": 0.0}, "rate: found 0.0, expected more than 0"),
        ({"average_decay": 1.0}, "average_decay: found 1.0"),
    ],
    ids=["steps", "rate", "average_decay"],
)
def test_refuses_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnergyFitOptions(**options)  # type: ignore[arg-type]
