"""Fits a Chimera draft to a target on one CPU core, and measures how far its drafts get.

The target runs once over the text and its states are kept; then only the draft's own weights move:
Muon for matrices, AdamW for those with a side of vocabulary size and for all else.

Source: Zeng et al., 2024, arXiv 2402.15758, "Training"; Jordan et al., 2024, Muon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from optimize.passes.drafts.chimera import Chimera, ChimeraConfig
from optimize.recipes.fit.chimera_rows import Feeding, draft_rows
from optimize.recipes.fit.target_states import TargetStates, record_states, target_tables

FIRST = 1
"""Rows with j before this are left out of the loss: their trigram is degenerate."""


@dataclass(frozen=True)
class FitOptions:
    """How a draft is fitted.

    Args:
        steps: optimizer steps.
        batch_size: sequences per step.
        matrix_rate, other_rate: learning rates of Muon and of AdamW.
        weight_decay: of both, per unit of learning rate.
        warmup_steps: steps over which the rates rise from 0.
        decay_share: share of the steps, at the end, over which they fall to 0; in (0, 1].
        labels: "argmax" for cross-entropy with the target's choice, "soft" with its distribution.
        distillation: lambda, the weight of MSE(h_{j+1}, o_j) of the rows of depth 0; 0 or more.
        depth_decay: weight of the loss of depth i is its power i; in (0, 1].
        feeding: tokens of the chains of later heads, see `draft_rows`.
        detach_earlier: no gradients through earlier depths.
        bfloat16: forward and backward in bfloat16 autocast.
        seed: of the initial weights and of the batches.
    """

    steps: int = 1000
    batch_size: int = 8
    matrix_rate: float = 0.02
    other_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    decay_share: float = 0.6
    labels: Literal["soft", "argmax"] = "argmax"
    distillation: float = 0.1
    depth_decay: float = 1.0
    feeding: Feeding = "text"
    detach_earlier: bool = False
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("decay_share", "depth_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected one in (0, 1]")
        if self.distillation < 0:
            raise ValueError(f"distillation: found {self.distillation}, expected 0 or more")


Progress = Callable[[int, float, Chimera], None]
"""Called after every step with its number, from 1, its loss, and the draft so far."""


def fit_chimera(
    decoder: nn.Module,
    sequences: torch.Tensor | TargetStates,
    config: ChimeraConfig | None = None,
    options: FitOptions | None = None,
    progress: Progress | None = None,
) -> Chimera:
    """A draft of a target, in evaluation mode.

    Args:
        decoder: the target, a `Decoder` without image; it stays as it is.
        sequences: [N, S] int64 text, at best the target's own; or what was recorded on it.
        config: the draft's shape; None for the defaults at the target's sizes.
        options: see `FitOptions`.
        progress: what to tell on the way.
    """
    options = options or FitOptions()
    tables = target_tables(decoder)
    vocabulary, width = tables.last.weight.shape
    config = config or ChimeraConfig(width, vocabulary)
    states = sequences
    if isinstance(states, torch.Tensor):
        states = record_states(decoder, states)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        chimera = Chimera(config, tables.embedding.weight.float(), tables.last.weight.float())
    optimizers = _optimizers(chimera, options)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_share(step, options))
        for optimizer in optimizers
    ]
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, options.steps + 1):
        while len(order) < options.batch_size:
            order = torch.cat([order, torch.randperm(len(states), generator=generator)])
        chosen, order = order[: options.batch_size], order[options.batch_size :]
        with torch.autocast("cpu", torch.bfloat16, options.bfloat16):
            loss = draft_loss(chimera, states.rows(chosen), options)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if progress is not None:
            progress(step, loss.item(), chimera)
    return chimera.eval()


def draft_loss(chimera: Chimera, states: TargetStates, options: FitOptions) -> torch.Tensor:
    """Sum over depths of the mean cross-entropy with the target, and the distillation of states."""
    hidden = states.hidden.to(chimera.lm_head.dtype)
    total = hidden.new_zeros(())
    with torch.no_grad():
        scores = torch.softmax((hidden @ chimera.lm_head.T).float(), -1)
    made = draft_rows(chimera, states.tokens, hidden, options.feeding, options.detach_earlier)
    for depth, (logits, fused) in enumerate(made):
        # Row (i, j) scores the token behind token j + 1 + i, as the target's state there does.
        places = slice(FIRST + 1 + depth, None)
        labels = scores[:, places] if options.labels == "soft" else states.predicted[:, places]
        rows = logits[:, FIRST:].float()
        loss = cross_entropy(rows.flatten(0, 1), labels.flatten(0, 1))
        total = total + options.depth_decay**depth * loss
        if depth == 0 and options.distillation:
            far = mse_loss(fused[:, FIRST:].float(), hidden[:, FIRST + 1 :].float())
            total = total + options.distillation * far
    return total


@torch.no_grad()
def ranks_by_depth(
    chimera: Chimera, states: TargetStates, first: int = FIRST, batch_size: int = 16
) -> torch.Tensor:
    """Rank of the text's next token in every row of a draft that got that far, [rows, heads].

    Row (i, j) with the text as its chain: 0 where the draft finds token j + 2 + i likeliest. Over
    the target's own greedy text this says which nodes of any tree of ranks would be accepted.

    Args:
        states: of greedy text.
        first: j of the first row; give the last token of the prompt.
    """
    depths = chimera.config.heads
    counted = states.tokens.shape[1] - depths - 1
    if counted <= first:
        raise ValueError(
            f"states: found sequences of {states.tokens.shape[1]} tokens, expected more than "
            f"{first + depths + 1} for {depths} heads from row {first} on"
        )
    found = []
    for start in range(0, len(states), batch_size):
        part = states.rows(slice(start, start + batch_size))
        hidden = part.hidden.to(chimera.lm_head.dtype)
        ranks = []
        for depth, (logits, _) in enumerate(draft_rows(chimera, part.tokens, hidden)):
            rows = logits[:, first:counted]
            labels = part.tokens[:, first + 2 + depth : counted + 2 + depth, None]
            ranks.append((rows > rows.gather(-1, labels)).sum(-1))
        found.append(torch.stack(ranks, -1).flatten(0, 1))
    return torch.cat(found)


def agreement_by_depth(
    chimera: Chimera, states: TargetStates, first: int = FIRST
) -> tuple[float, ...]:
    """Share of rows, per depth, where a greedy chain still equals the target's greedy text.

    Their sum and one are the tokens per call of a chain of that depth.
    """
    agree = (ranks_by_depth(chimera, states, first) == 0).long().cumprod(-1)
    return tuple(agree.double().mean(0).tolist())


def tokens_per_call(ranks: torch.Tensor, paths: Sequence[tuple[int, ...]]) -> float:
    """Mean tokens per call of the target, its own included, when a tree of rank paths is drafted.

    Args:
        ranks: [rows, heads] as `ranks_by_depth` returns them.
        paths: ranks from the root to each node; every prefix of a path is one, too.
    """
    accepted = torch.zeros(len(ranks), dtype=torch.float64)
    for path in paths:
        if len(path) <= ranks.shape[1]:
            accepted += (ranks[:, : len(path)] == torch.tensor(path)).all(-1)
    return 1.0 + accepted.mean().item()


def _rate_share(step: int, options: FitOptions) -> float:
    rising = min(1.0, (step + 1) / options.warmup_steps)
    falling = (options.steps - step) / (options.decay_share * options.steps)
    return min(rising, falling, 1.0)


def _optimizers(chimera: Chimera, options: FitOptions) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in chimera.parameters():
        inner = parameter.ndim == 2 and chimera.config.vocabulary not in parameter.shape
        (matrices if inner else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=options.matrix_rate,
            weight_decay=options.weight_decay,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW(
            others, lr=options.other_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
        ),
    ]
