"""Fitting a Chimera draft: what its rows see, what it measures, and that it learns."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from optimize.passes.drafts.chimera import Chimera, ChimeraConfig, token_windows
from optimize.recipes.fit.chimera import (
    FitOptions,
    agreement_by_depth,
    draft_loss,
    fit_chimera,
    ranks_by_depth,
    tokens_per_call,
)
from optimize.recipes.fit.chimera_rows import draft_rows
from optimize.recipes.fit.target_states import (
    TargetStates,
    generate_text,
    record_states,
    target_tables,
)
from optimize.recipes.zoo.tiny_decoder import TinyModel, plain_decoding, tiny_model

HEADS = 3


def untrained(model: TinyModel, dtype: torch.dtype = torch.float64) -> Chimera:
    tables = target_tables(model.decoder)
    vocabulary, width = tables.last.weight.shape
    config = ChimeraConfig(width, vocabulary, mlp_width=48, heads=HEADS, head_rank=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedding, last = tables.embedding.weight.to(dtype), tables.last.weight.to(dtype)
        chimera = Chimera(config, embedding, last)
        for parameter in chimera.parameters():
            nn.init.normal_(parameter, std=0.2)
    return chimera.eval()


def text(batch: int = 2, length: int = 10, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 50, (batch, length), generator=generator)


def all_rows(chimera: Chimera, states: TargetStates, **options: Any) -> list[torch.Tensor]:
    """Logits and o of every depth, in one list."""
    hidden = states.hidden.to(chimera.lm_head.dtype)
    with torch.no_grad():
        made = draft_rows(chimera, states.tokens, hidden, **options)
        return [part for pair in made for part in pair]


def changed_rows(before: list[torch.Tensor], after: list[torch.Tensor]) -> list[list[int]]:
    """For each tensor the j of the rows that differ in any sample."""
    return [
        ((old - new).abs().amax(-1) > 1e-9).any(0).nonzero().flatten().tolist()
        for old, new in zip(before, after, strict=True)
    ]


def test_no_row_knows_a_token_behind_its_own() -> None:
    model = tiny_model()
    chimera, tokens, place = untrained(model), text(), 6
    states = record_states(model.decoder, tokens, dtype=torch.float64)
    before = all_rows(chimera, states)
    changed = tokens.clone()
    changed[:, place] = (tokens[:, place] + 1) % 50
    after = all_rows(chimera, record_states(model.decoder, changed, dtype=torch.float64))
    for depth in range(HEADS):
        # Row (i, j) ends with token j + 1 + i: place 6 is the one it must not know where j = 5 - i,
        # one later, and its own, or one of its chain or context, from j = 5 - i on.
        logits, fused = changed_rows(before, after)[2 * depth : 2 * depth + 2]
        first = place - 1 - depth
        assert logits == fused == list(range(first, 10 - 1 - depth))


def test_a_row_sees_states_of_verified_tokens_alone() -> None:
    model = tiny_model()
    chimera = untrained(model)
    states = record_states(model.decoder, text(), dtype=torch.float64)
    before = all_rows(chimera, states)
    hidden = states.hidden.clone()
    hidden[:, 6] += 1
    after = all_rows(chimera, replace(states, hidden=hidden))
    for depth in range(HEADS):
        for moved in changed_rows(before, after)[2 * depth : 2 * depth + 2]:
            assert moved == list(range(6, 10 - 1 - depth))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
def test_drafting_with_a_cache_equals_the_rows_of_training(
    dtype: torch.dtype, tolerance: float
) -> None:
    model = tiny_model()
    chimera, tokens = untrained(model, dtype), text(batch=3)
    states = record_states(model.decoder, tokens, dtype=dtype)
    trained = all_rows(chimera, states)
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    windows = token_windows(tokens)
    for verified in (1, 4, 6):
        # The context comes in two pieces, as two rounds would bring it.
        cut = verified // 2
        pieces = [
            chimera.context(states.hidden[:, part], places[:, part])
            for part in (slice(0, cut), slice(cut, verified + 1))
        ]
        keys, values = (torch.cat(items, 2) for items in zip(*pieces, strict=True))
        for depth in range(HEADS):
            row = slice(verified + 1 + depth, verified + 2 + depth)
            fused, keys, values = _drafted(chimera, windows[:, row], places[:, row], keys, values)
            logits = chimera.logits(states.hidden[:, verified : verified + 1], fused, depth)
            for found, expected in zip((logits, fused), trained[2 * depth :], strict=False):
                expected = expected[:, verified : verified + 1]
                torch.testing.assert_close(
                    found, expected, rtol=0, atol=tolerance * float(expected.abs().max())
                )


@torch.no_grad()
def _drafted(
    chimera: Chimera,
    windows: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """O of one more row, and keys and values with its own."""
    grown: list[torch.Tensor] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        grown.extend((torch.cat([keys, key], 2), torch.cat([values, value], 2)))
        return scaled_dot_product_attention(query, grown[0], grown[1])

    fused = chimera.fuse(chimera.trigram(chimera.embed(windows)), positions, attend)
    return fused, grown[0], grown[1]


def test_a_tree_with_a_mask_equals_each_of_its_paths() -> None:
    model = tiny_model()
    chimera = untrained(model)
    tokens = text(batch=1, length=6)
    states = record_states(model.decoder, tokens, dtype=torch.float64)
    keys, values = chimera.context(states.hidden, torch.arange(6)[None])
    # A root with two children, the second of which has one: rows 0, 1, 2, 3.
    parents, named, depths = [-1, 0, 0, 2], [11, 12, 13, 14], [0, 1, 1, 2]
    paths = [[0], [0, 1], [0, 2], [0, 2, 3]]
    before = tokens[0, -2:].tolist()
    windows = torch.tensor([[*before, *(named[row] for row in path)][-3:] for path in paths])[None]
    sees = torch.zeros(4, 6 + 4, dtype=torch.bool)
    for row, path in enumerate(paths):
        sees[row, :6] = True
        sees[row, [6 + item for item in path]] = True
        assert int(sees[row].sum()) == 6 + depths[row] + 1
        assert parents[row] == (path[-2] if len(path) > 1 else -1)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        return scaled_dot_product_attention(query, key, value, attn_mask=sees)

    positions = 6 + torch.tensor(depths)[None]
    together = chimera.fuse(chimera.trigram(chimera.embed(windows)), positions, attend)
    for row, path in enumerate(paths):
        seen = keys, values
        for item in path:
            one = slice(item, item + 1)
            fused, *rest = _drafted(chimera, windows[:, one], positions[:, one], *seen)
            seen = rest[0], rest[1]
        torch.testing.assert_close(together[:, row : row + 1], fused, rtol=0, atol=1e-10)


def test_own_choices_make_the_chain_a_draft_would_make() -> None:
    model = tiny_model()
    chimera, tokens = untrained(model), text()
    states = record_states(model.decoder, tokens, dtype=torch.float64)
    found = all_rows(chimera, states, feeding="own")[::2]
    for verified in (1, 4):
        made = tokens[:, : verified + 2]
        for depth in range(HEADS):
            # The chain as a text of its own gives the same row.
            rest = tokens[:, made.shape[1] :]
            own = replace(states, tokens=torch.cat([made, rest], 1))
            expected = all_rows(chimera, own)[2 * depth][:, verified]
            torch.testing.assert_close(found[depth][:, verified], expected, rtol=0, atol=1e-10)
            made = torch.cat([made, expected.argmax(-1, keepdim=True)], 1)


def test_gradients_stop_at_earlier_depths_where_asked() -> None:
    model = tiny_model()
    chimera = untrained(model)
    states = record_states(model.decoder, text(), dtype=torch.float64)
    gradients = {}
    for detach in (False, True):
        rows = list(draft_rows(chimera, states.tokens, states.hidden, detach_earlier=detach))
        (gradients[detach],) = torch.autograd.grad(rows[1][1].sum(), [chimera.value])
        values = all_rows(chimera, states, detach_earlier=detach)
        torch.testing.assert_close(values[2], rows[1][0].detach())
    assert not torch.allclose(gradients[True], gradients[False])


def greedy_states(model: TinyModel, batch: int = 6, length: int = 24) -> TargetStates:
    prompts = text(batch, 6, seed=3)
    request = {"input_ids": prompts, "lengths": torch.full((batch,), 6)}
    answer, _ = plain_decoding(model, request, length)
    return record_states(model.decoder, torch.cat([prompts, answer], 1), dtype=torch.float64)


def test_recorded_states_are_those_the_logits_come_from() -> None:
    model = tiny_model()
    tokens = text(batch=5)
    states = record_states(model.decoder, tokens, batch_size=2, dtype=torch.float64)
    mask = torch.ones(10, 10, dtype=torch.bool).tril().expand(5, 1, 10, 10)
    positions = torch.arange(10).expand(5, 10)
    logits = model.decoder(tokens, positions, mask)
    found = states.hidden @ model.decoder.head.weight.T
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-12)
    assert torch.equal(states.predicted, logits.argmax(-1))
    assert not model.decoder.head._forward_pre_hooks


def test_generated_text_is_the_targets_own() -> None:
    model = tiny_model()
    prompts = text(5, 6)
    request = {"input_ids": prompts, "lengths": torch.full((5,), 6)}
    expected, _ = plain_decoding(model, request, 7)
    found = generate_text(model.decoder, prompts, 7, batch_size=2)
    assert torch.equal(found, torch.cat([prompts, expected], 1))
    drawn = [generate_text(model.decoder, prompts, 7, 1.0, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ValueError, match="found prompts of 6 and 251 new tokens"):
        generate_text(model.decoder, prompts, 251)


def test_tables_that_cannot_be_told_are_refused() -> None:
    decoder = tiny_model().decoder
    with pytest.raises(ValueError, match="found sequences of 300, expected at most 256"):
        record_states(decoder, text(1, 300))
    decoder.extra = nn.Linear(32, 50, bias=False)
    with pytest.raises(ValueError, match="found 2 linear modules with 50 outputs"):
        target_tables(decoder)
    assert target_tables(decoder, decoder.head).last is decoder.head
    with pytest.raises(ValueError, match="found a bias"):
        target_tables(decoder, nn.Linear(32, 50))
    decoder.other = nn.Embedding(50, 32)
    with pytest.raises(ValueError, match=r"found 2 embeddings of shape \[50, 32\]"):
        target_tables(decoder, decoder.head)


class _Foretelling(Chimera):
    """Finds the text's own token likeliest in every row: `following` [B, S] says it."""

    following: torch.Tensor

    def logits(self, hidden: torch.Tensor, fused: torch.Tensor, depth: int) -> torch.Tensor:
        labels = self.following[:, depth + 1 : depth + 1 + hidden.shape[1]]
        return nn.functional.one_hot(labels, self.config.vocabulary).to(hidden.dtype)


def test_a_perfect_draft_is_accepted_to_its_depth() -> None:
    model = tiny_model()
    states = greedy_states(model)
    chimera = untrained(model)
    oracle = _Foretelling(chimera.config, chimera.embedding, chimera.lm_head)
    oracle.following = states.predicted
    chain = [(0,) * length for length in range(1, HEADS + 1)]
    ranks = ranks_by_depth(oracle, states, first=5, batch_size=6)
    assert ranks.shape == (6 * (30 - HEADS - 1 - 5), HEADS)
    assert tokens_per_call(ranks, chain) == HEADS + 1
    assert agreement_by_depth(oracle, states, first=5) == pytest.approx((1.0,) * HEADS)


def test_tokens_per_call_counts_the_deepest_accepted_node() -> None:
    ranks = torch.tensor([[0, 1], [1, 0], [2, 0], [0, 0]])
    paths = [(0,), (1,), (0, 0), (0, 1)]
    assert tokens_per_call(ranks, paths) == 1 + (2 + 1 + 0 + 2) / 4
    assert tokens_per_call(ranks, []) == 1.0


def test_agreement_is_what_chains_reach_and_greedy_text_does_not_depend_on_it() -> None:
    model = tiny_model()
    states = greedy_states(model, batch=3, length=18)
    chimera = untrained(model)
    # A little of what the target says, so that some tokens are accepted and some are not.
    with torch.no_grad():
        for parameter in chimera.parameters():
            parameter.mul_(0.5)
    agreement = agreement_by_depth(chimera, states, first=5)
    tokens, accepted = states.tokens, []
    for verified in range(5, tokens.shape[1] - HEADS - 1):
        made = tokens[:, : verified + 2]
        for depth in range(HEADS):
            grown = torch.cat([made, tokens[:, made.shape[1] :]], 1)
            rows = all_rows(chimera, replace(states, tokens=grown))[2 * depth]
            made = torch.cat([made, rows[:, verified].argmax(-1, keepdim=True)], 1)
        drafted = made[:, verified + 2 :]
        true = tokens[:, verified + 2 : verified + 2 + HEADS]
        accepted.append((drafted == true).long().cumprod(-1).sum(-1))
    expected = torch.cat(accepted).double().mean().item()
    assert sum(agreement) == pytest.approx(expected, abs=1e-12)


def test_the_loss_is_that_of_its_parts() -> None:
    model = tiny_model()
    chimera = untrained(model)
    states = record_states(model.decoder, text(), dtype=torch.float64)
    options = FitOptions(labels="argmax", distillation=0.5, depth_decay=0.5)
    made = all_rows(chimera, states)
    expected = 0.0
    for depth in range(HEADS):
        rows = torch.log_softmax(made[2 * depth].float(), -1)
        places = [(b, j) for b in range(2) for j in range(1, 10 - 1 - depth)]
        picks = [float(rows[b, j, states.predicted[b, j + 1 + depth]]) for b, j in places]
        expected -= 0.5**depth * sum(picks) / len(picks)
    far = made[1][:, 1:] - states.hidden[:, 2:]
    expected += 0.5 * float((far * far).mean())
    with torch.no_grad():
        assert draft_loss(chimera, states, options).item() == pytest.approx(expected, rel=1e-5)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    yield
    for name, value in module.state_dict().items():
        assert torch.equal(before[name], value), name
    assert all(parameter.grad is None for parameter in module.parameters())


def grammar(batch: int, length: int, seed: int) -> torch.Tensor:
    """Text over 12 tokens in which two tokens say the next one, three times in four."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(12, (batch,), generator=generator) for _ in range(2)]
    for _ in range(length - 2):
        drawn = torch.randint(12, (batch,), generator=generator)
        said = (5 * tokens[-1] + 7 * tokens[-2] + 3) % 12
        usual = torch.rand(batch, generator=generator) < 0.75
        tokens.append(torch.where(usual, said, drawn))
    return torch.stack(tokens, 1)


def trained_on_grammar() -> nn.Module:
    decoder = tiny_model(dtype=torch.float32, layers=2).decoder
    matrices = [item for item in decoder.blocks.parameters() if item.ndim == 2]
    known = set(map(id, matrices))
    others = [item for item in decoder.parameters() if id(item) not in known]
    optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]
    mask = torch.ones(24, 24, dtype=torch.bool).tril().expand(32, 1, 24, 24)
    for step in range(120):
        tokens = grammar(32, 25, seed=step)
        logits = decoder(tokens[:, :-1], torch.arange(24).expand(32, 24), mask)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return decoder


def test_a_fitted_draft_agrees_far_more_often() -> None:
    decoder = trained_on_grammar()
    train, held_out = grammar(96, 40, seed=1000), grammar(32, 40, seed=1001)
    held = record_states(decoder, held_out, dtype=torch.float32)
    config = ChimeraConfig(32, 50, mlp_width=64, heads=2)
    options = FitOptions(steps=80, batch_size=16)
    losses: list[float] = []
    with unchanged(decoder):
        fitted = fit_chimera(
            decoder, train, config, options, lambda step, loss, _: losses.append(loss)
        )

    def agreeing(chimera: Chimera) -> list[float]:
        made = all_rows(chimera, held)
        pairs = [(made[2 * i][:, 1:].argmax(-1), held.predicted[:, 2 + i :]) for i in range(2)]
        return [(found == true).double().mean().item() for found, true in pairs]

    tables = target_tables(decoder)
    start = Chimera(config, tables.embedding.weight, tables.last.weight)
    assert len(losses) == 80 and all(map(math.isfinite, losses))
    assert max(agreeing(start)) < 0.3
    assert min(agreeing(fitted)) > 0.7
    few = replace(options, steps=3)
    first, second = (fit_chimera(decoder, train, config, few) for _ in range(2))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
