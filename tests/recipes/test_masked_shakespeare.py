"""The masked model of Shakespeare's plays: the shipped weights, the bound, and its training."""

from __future__ import annotations

import json
from itertools import combinations, permutations
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from optimize.ir.decode import Sampling
from optimize.ir.unmask import UnmaskLoop
from optimize.recipes.zoo.language_model_judge import windows_of
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel, masked_text_loss
from optimize.recipes.zoo.masked_shakespeare import (
    LENGTH,
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    load_masked_shakespeare,
    masked_shakespeare_program,
)
from optimize.recipes.zoo.shakespeare_data import (
    VOCABULARY,
    ShakespeareData,
    load_held_out_play,
    load_tokenizer,
)
from optimize.recipes.zoo.train_masked_shakespeare import (
    MaskedShakespeareOptions,
    bound,
    masked_counts,
    train,
)


@pytest.fixture(scope="module")
def model() -> MaskedLanguageModel:
    return load_masked_shakespeare()


def test_shipped_weights_and_their_record_belong_together(model: MaskedLanguageModel) -> None:
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert record["sha256"] == WEIGHTS_SHA256
    assert record["parameters"] == sum(item.numel() for item in model.parameters())
    assert WEIGHTS_PATH.stat().st_size < 3.2e6
    assert {item.dtype for item in model.parameters()} == {torch.float32}


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_PATH.name
    path.write_bytes(WEIGHTS_PATH.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="masked_shakespeare: found weights with SHA-256"):
        load_masked_shakespeare(path)
    with pytest.raises(FileNotFoundError, match="train_masked_shakespeare"):
        load_masked_shakespeare(tmp_path / "masked_shakespeare_2" / WEIGHTS_PATH.name)


def test_the_model_foretells_what_is_masked_in_a_play_it_never_saw(
    model: MaskedLanguageModel,
) -> None:
    texts = windows_of(load_held_out_play(), 6, LENGTH).long()
    assert bound(model, texts, draws=2) < 4.2


def test_a_token_is_the_likelier_the_more_is_known(model: MaskedLanguageModel) -> None:
    texts = windows_of(load_held_out_play(), 6, LENGTH).long()
    with torch.no_grad():
        few, all_masked = (
            masked_text_loss(model, texts, torch.full((6,), count), torch.Generator())
            for count in (32, LENGTH)
        )
    assert few < all_masked - 1


def test_the_program_writes_behind_a_prompt() -> None:
    loop = UnmaskLoop(
        mask_id=VOCABULARY,
        length=12,
        remasking="random",
        sampling=Sampling(1.0, top_p=None),
        max_prompt=16,
    )
    found = masked_shakespeare_program(loop)(prompt="HAMLET.", seed=1)
    tokens = found["tokens"][0].tolist()
    assert len(tokens) == 12 and max(tokens) < VOCABULARY
    assert found["calls"].tolist() == [12]
    assert found["text"] == load_tokenizer().decode(tokens)


# The loss and the training


class Constant(MaskedLanguageModel):
    """Says the same of every row, whatever it sees, and keeps what it saw."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__(len(logits), dim=4, block_count=0, head_count=1, hidden=4)
        self.said = torch.tensor(logits)
        self.seen = torch.empty(0)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.seen = input_ids
        return self.said.expand(*input_ids.shape, -1)


def test_the_loss_is_the_mean_over_texts_of_the_mean_over_masks() -> None:
    model = Constant([0.0, 1.0, -2.0])
    texts = torch.tensor([[0, 1, 2, 1, 0, 2], [2, 2, 0, 0, 1, 1]])
    counts = torch.tensor([1, 4])
    loss = masked_text_loss(model, texts, counts, torch.Generator().manual_seed(3), first=1)
    hidden = model.seen == model.mask_id
    assert hidden.sum(-1).tolist() == [1, 4] and not hidden[:, 0].any()
    assert torch.equal(model.seen[~hidden], texts[~hidden])
    each = F.cross_entropy(model.said.expand(12, -1), texts.flatten(), reduction="none")
    each = each.view(2, 6)
    by_hand = (each[0][hidden[0]].sum() / 1 + each[1][hidden[1]].sum() / 4) / 2
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_the_time_free_bound_is_the_mean_over_orders_and_the_integral_over_times() -> None:
    torch.manual_seed(0)
    model = MaskedLanguageModel(3, dim=8, block_count=1, head_count=1, hidden=8).eval()
    torch.nn.init.normal_(model.head.weight)
    text = torch.tensor([[0, 2, 1, 1]])
    losses: dict[frozenset[int], torch.Tensor] = {}
    with torch.no_grad():
        for chosen in (frozenset(c) for n in range(1, 5) for c in combinations(range(4), n)):
            masked = text.clone()
            masked[0, list(chosen)] = model.mask_id
            losses[chosen] = F.cross_entropy(model(masked)[0], text[0], reduction="none").double()
    sums = {chosen: float(loss[list(chosen)].sum()) for chosen, loss in losses.items()}
    time_free = sum(
        sum(item for chosen, item in sums.items() if len(chosen) == n) / comb(4, n) / n
        for n in range(1, 5)
    )
    orders = [
        sum(float(losses[frozenset(order[place:])][order[place]]) for place in range(4))
        for order in permutations(range(4))
    ]
    assert time_free == pytest.approx(sum(orders) / len(orders), rel=1e-9)
    # Gauss-Legendre is exact for the polynomials in t that the integrand is made of.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    times = (nodes + 1) / 2
    integral = sum(
        float((weights / 2 * times ** (len(chosen) - 1) * (1 - times) ** (4 - len(chosen))).sum())
        * item
        for chosen, item in sums.items()
    )
    assert time_free == pytest.approx(integral, rel=1e-9)
    counts = torch.arange(4000) % 4 + 1
    with torch.no_grad():
        drawn = masked_text_loss(
            model, text.expand(4000, 4), counts, torch.Generator().manual_seed(1)
        )
    assert float(drawn) == pytest.approx(time_free / 4, rel=0.03)


def test_counts_of_masks_are_spread_evenly() -> None:
    found = masked_counts(8, 16, torch.Generator().manual_seed(0))
    # Two of sixteen counts belong to each of eight cells.
    assert sorted((found - 1).div(2, rounding_mode="floor").tolist()) == list(range(8))


def test_trains_from_options_and_starts_from_the_autoregressive_model(tmp_path: Path) -> None:
    play = load_held_out_play()
    options = MaskedShakespeareOptions(
        steps=2,
        batch_size=2,
        context=16,
        check_every=2,
        check_windows=2,
        bfloat16=False,
        compiled=False,
    )
    model = MaskedLanguageModel(VOCABULARY, dim=128, block_count=1, head_count=4, hidden=8)
    train(model, ShakespeareData(play[:4000], play[4000:6000]), options, tmp_path)
    record = json.loads((tmp_path / WEIGHTS_PATH.with_suffix(".json").name).read_text())
    assert record["step"] == 2 and 4 < record["check"]["bound_nats_per_token"] < 12
