"""Fits a judge: one linear score that says whether a drafted token is a correct continuation.

    f(e) = sigmoid(w · e + b),  accepted where f >= threshold

e is the target's state behind its final norm at the drafted token's own position, so the target has
read the token. Features are standardised for the fit, and the scaler is folded into w and b.

Source: Bachmann et al., "Judge Decoding", ICLR 2025, arXiv 2501.19309; the grid, the split and the
choice of the threshold: Garipov et al., "AutoJudge", NeurIPS 2025, arXiv 2504.20039.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from optimize.passes.drafts.judge_head import JudgeHead

INVERSE_PENALTIES = (*(10 ** (-k / 2) for k in range(1, 15)), 1.0, 3.0, 10.0, 50.0, 100.0)
"""C of the loss C * sum + |w|^2 / 2, AutoJudge's grid."""


@dataclass(frozen=True)
class Examples:
    """Judged tokens.

    Attributes:
        features: [n, d] float32, the target's state at each token's own position.
        correct: [n] bool.
        questions: [n] int64, the question each belongs to; a split never divides one.
    """

    features: torch.Tensor
    correct: torch.Tensor
    questions: torch.Tensor

    def __post_init__(self) -> None:
        count = len(self.features)
        if self.features.ndim != 2 or not count == len(self.correct) == len(self.questions):
            raise ValueError(
                f"examples: found features {list(self.features.shape)}, {len(self.correct)} labels "
                f"and {len(self.questions)} questions, expected [n, d], n and n"
            )

    def chosen(self, where: torch.Tensor) -> Examples:
        """Some of them, by a mask [n] bool."""
        return Examples(self.features[where], self.correct[where], self.questions[where])


@dataclass(frozen=True)
class JudgeFit:
    """A judge and its figures on held-out questions.

    Attributes:
        head: the judge.
        inverse_penalty: the C that was chosen.
        auc: area under the ROC curve.
        error_recall: share of the errors that the threshold rejects.
        kept_share: share of the correct tokens that the threshold accepts.
    """

    head: JudgeHead
    inverse_penalty: float
    auc: float
    error_recall: float
    kept_share: float


def fit_judge(
    examples: Examples,
    fingerprint: str,
    *,
    error_recall: float = 0.9,
    held_out_share: float = 0.1,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
    seed: int = 52,
) -> JudgeFit:
    """Fits the head; penalty and threshold are chosen on questions that are held out.

    Args:
        examples: judged tokens.
        fingerprint: of the target.
        error_recall: share of held-out errors that the threshold must reject, in (0, 1].
        held_out_share: of the questions, in (0, 1).
        inverse_penalties: values of C to try.
        seed: of the split.
    Raises:
        ValueError: a side of the split lacks correct tokens or errors.
    """
    if not 0 < error_recall <= 1 or not 0 < held_out_share < 1:
        raise ValueError(
            f"fit_judge: found error_recall {error_recall} and held_out_share {held_out_share}, "
            "expected numbers in (0, 1] and in (0, 1)"
        )
    held_out = _held_out(examples.questions, held_out_share, seed)
    train, check = examples.chosen(~held_out), examples.chosen(held_out)
    for side, name in ((train, "training"), (check, "held-out")):
        right = int(side.correct.sum())
        if not 0 < right < len(side.correct):
            raise ValueError(
                f"examples: found {right} correct tokens among the {len(side.correct)} {name} "
                "ones, expected both correct ones and errors; mine more questions"
            )
    best: tuple[float, float, torch.Tensor, torch.Tensor] | None = None
    for inverse_penalty in inverse_penalties:
        weight, bias = fit_linear(train, inverse_penalty)
        auc = area_under_curve(check.features.double() @ weight + bias, check.correct)
        if best is None or auc > best[0]:
            best = (auc, inverse_penalty, weight, bias)
    assert best is not None
    auc, inverse_penalty, weight, bias = best
    scores = check.features.double() @ weight + bias
    limit = threshold_for(scores, check.correct, error_recall)
    head = JudgeHead(weight.float(), bias.item(), limit, fingerprint)
    accepted = torch.sigmoid(scores) >= limit
    return JudgeFit(
        head,
        inverse_penalty,
        auc,
        error_recall=(~accepted[~check.correct]).double().mean().item(),
        kept_share=accepted[check.correct].double().mean().item(),
    )


def fit_linear(examples: Examples, inverse_penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [d] and bias, float64, for the features as they are, by LBFGS."""
    features = examples.features.double()
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-12)
    rows = (features - mean) / deviation
    parameters = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    penalty = 1 / (inverse_penalty * len(rows))
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        weight = parameters[:-1]
        loss = weighted_loss(rows @ weight + parameters[-1], examples.correct)
        loss = loss + penalty / 2 * (weight * weight).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = parameters.detach()
    return folded(scaled[:-1], scaled[-1], mean, deviation)


def folded(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias for features e of those for (e - mean) / deviation."""
    return weight / deviation, bias - (weight * mean / deviation).sum()


def weighted_loss(scores: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of log odds [n], both classes with half of the weight."""
    loss = torch.where(correct, -logsigmoid(scores), -logsigmoid(-scores))
    right, count = correct.sum().to(scores.dtype), len(correct)
    shares = torch.where(correct, count / (2 * right), count / (2 * (count - right)))
    return (shares * loss).mean()


def area_under_curve(scores: torch.Tensor, correct: torch.Tensor) -> float:
    """Probability that a correct token has a higher score than an error; ties count half."""
    _, places, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # Mean rank, from 1, of each group of equal scores.
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0).double()[places]
    right, wrong = int(correct.sum()), int((~correct).sum())
    return float(ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong)


def threshold_for(scores: torch.Tensor, correct: torch.Tensor, error_recall: float) -> float:
    """The smallest probability that rejects this share of the errors, given log odds.

    It lies midway between the highest error that must be rejected and the next higher score.
    """
    errors = scores[~correct].sort().values
    limit = errors[math.ceil(error_recall * len(errors)) - 1]
    above = scores[scores > limit]
    cut = (limit + above.min()) / 2 if len(above) else limit + 1.0
    return float(torch.sigmoid(cut))


def _held_out(questions: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """[n] bool: whether a token's question is held out; at least one question is."""
    names = torch.tensor(sorted(set(questions.tolist())))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(names), generator=generator)
    count = max(1, round(share * len(names)))
    return torch.isin(questions, names[order[:count]])
