"""The judge head: its fit, its figures, its file, and the mining of what it learns from."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from optimize.passes.drafts.judge_head import JudgeHead, load_judge, save_judge
from optimize.recipes.fit.judge import (
    Examples,
    area_under_curve,
    fit_judge,
    fit_linear,
    folded,
    threshold_for,
    weighted_loss,
)
from optimize.recipes.fit.judge_mining import judged_features, marked_answer, mine
from optimize.recipes.fit.target_states import record_states
from optimize.recipes.zoo.tiny_decoder import tiny_model

Tokens = list[int]


def planted(count: int = 600, gap: float = 1.0, seed: int = 0) -> Examples:
    """Errors are a tenth, and lie beyond a plane; no feature has mean 0 or deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 12, generator=generator)
    correct = torch.rand(count, generator=generator) < 0.9
    direction = torch.nn.functional.normalize(torch.ones(12), dim=0)
    along = torch.where(correct, -1.0, 1.0) * (gap + torch.rand(count, generator=generator))
    features += (along - features @ direction)[:, None] * direction
    questions = torch.arange(count) // 5
    return Examples(features * torch.linspace(0.1, 9, 12) + 3, correct, questions)


def test_a_planted_direction_is_found() -> None:
    fit = fit_judge(planted(), "target")
    assert fit.auc == 1.0
    assert fit.error_recall == 1.0 and fit.kept_share == 1.0
    fresh = planted(seed=1)
    assert area_under_curve(fit.head.score(fresh.features), fresh.correct) == 1.0


def test_the_loss_starts_at_log_2_for_any_balance() -> None:
    for right in (1, 5, 9):
        correct = torch.arange(10) < right
        loss = weighted_loss(torch.zeros(10, dtype=torch.float64), correct)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


def test_the_folded_head_equals_the_scaled_one() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, dtype=torch.float64, generator=generator) * 7 + 2
    weight = torch.randn(8, dtype=torch.float64, generator=generator)
    bias = torch.tensor(0.3, dtype=torch.float64)
    mean, deviation = features.mean(0), features.std(0)
    scaled = (features - mean) / deviation @ weight + bias
    plain, offset = folded(weight, bias, mean, deviation)
    torch.testing.assert_close(features @ plain + offset, scaled, rtol=0, atol=1e-10)
    head = JudgeHead(plain.float(), offset.item(), 0.5, "target")
    torch.testing.assert_close(head.score(features), scaled, rtol=0, atol=1e-5)


def test_the_fit_is_a_minimum_and_a_penalty_shrinks_it() -> None:
    examples = planted(gap=-0.5)
    norms = []
    for inverse_penalty in (1e-4, 1e-2, 1.0):
        weight, bias = fit_linear(examples, inverse_penalty)
        deviation = examples.features.double().std(0, correction=0)
        norms.append((weight * deviation).norm().item())
    assert norms == sorted(norms)
    best = weighted_loss(examples.features.double() @ weight + bias, examples.correct)
    for place in range(12):
        moved = weight.clone()
        moved[place] += 0.05
        loss = weighted_loss(examples.features.double() @ moved + bias, examples.correct)
        assert loss > best - 1e-3


def test_a_question_is_never_divided() -> None:
    # A feature that names the question tells a divided split apart: its held-out AUC would be high.
    generator = torch.Generator().manual_seed(3)
    questions = torch.arange(40).repeat_interleave(10)
    features = torch.randn(40, 60, generator=generator)[questions]
    correct = (torch.randn(40, generator=generator) > 0)[questions]
    fit = fit_judge(Examples(features, correct, questions), "target", held_out_share=0.4)
    assert fit.auc < 0.85


def test_area_under_curve_counts_ties_half() -> None:
    correct = torch.tensor([True, True, False, False])
    assert area_under_curve(torch.tensor([2.0, 3.0, 0.0, 1.0]), correct) == 1.0
    assert area_under_curve(torch.tensor([1.0, 1.0, 1.0, 1.0]), correct) == 0.5
    assert area_under_curve(torch.tensor([0.0, 2.0, 1.0, 0.0]), correct) == 0.625


def test_the_threshold_rejects_the_share_of_errors_asked_for() -> None:
    scores = torch.tensor([-3.0, -2.0, -1.0, 1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    correct = torch.tensor([False, False, False, False, True, True, True])
    for recall, cut in ((0.5, -1.5), (0.75, -0.5), (1.0, 1.5)):
        limit = threshold_for(scores, correct, recall)
        assert limit == pytest.approx(1 / (1 + math.exp(-cut)))
        assert (torch.sigmoid(scores[~correct]) < limit).double().mean() == recall


def test_one_kind_of_label_is_refused() -> None:
    features = torch.randn(20, 3)
    with pytest.raises(ValueError, match="expected both correct ones and errors"):
        fit_judge(Examples(features, torch.ones(20, dtype=torch.bool), torch.arange(20)), "target")
    with pytest.raises(ValueError, match="found features"):
        Examples(features, torch.ones(19, dtype=torch.bool), torch.arange(20))


def test_a_file_gives_the_head_back(tmp_path: Path) -> None:
    head = JudgeHead(torch.randn(7), 0.1, 0.625, "target")
    path = tmp_path / "judge.safetensors"
    save_judge(head, path)
    found = load_judge(path, "target")
    assert torch.equal(found.weight, head.weight)
    assert (found.bias, found.threshold, found.fingerprint) == (0.1, 0.625, "target")
    with pytest.raises(ValueError, match="found a judge of the target target, expected other"):
        load_judge(path, "other")
    with pytest.raises(ValueError, match="no readable safetensors"):
        load_judge(tmp_path / "none")


def states(sequences: Sequence[Tokens]) -> list[torch.Tensor]:
    """Of a real decoder, padded at the end."""
    decoder = tiny_model().decoder
    longest = max(map(len, sequences))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in sequences])
    hidden = record_states(decoder, tokens, dtype=torch.float64).hidden
    return [rows[: len(row)] for rows, row in zip(hidden, sequences, strict=True)]


def test_a_token_is_judged_by_the_state_at_its_own_position() -> None:
    weight = torch.randn(32, generator=torch.Generator().manual_seed(0))
    head = JudgeHead(weight, 0.0, 0.5, "target")
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]

    def scores(answer: Tokens) -> torch.Tensor:
        return head.score(judged_features([marked_answer(0, prompt, answer)], states).features)

    before = scores(answer)
    for place in range(4):
        changed = list(answer)
        changed[place] = 20
        moved = ~torch.isclose(scores(changed), before, rtol=0, atol=1e-6)
        assert moved.tolist() == [index >= place for index in range(4)]


def test_what_follows_a_marked_mistake_has_no_label() -> None:
    judged = marked_answer(4, [1, 2], [3, 4, 5, 6], first_mistake=2)
    assert judged.tokens == [1, 2, 3, 4, 5]
    assert judged.positions == (2, 3, 4)
    assert judged.correct == (True, True, False)
    assert marked_answer(4, [1, 2], [3, 4]).correct == (True, True)
    with pytest.raises(ValueError, match="first_mistake: found 4"):
        marked_answer(0, [1], [3, 4, 5, 6], first_mistake=4)


END, DIGIT, WRONG_DIGIT = 1, 30, 31
FILLERS = {10: 20, 11: 21, 12: 22, 13: 23}
"""What the target says, and what the draft says in its place; only the digit decides."""
ANSWER = (10, 11, DIGIT, 12, 13, END)
ASKED: list[Sequence[Tokens]] = []


def complete(starts: Sequence[Tokens]) -> list[Tokens]:
    """A target that keeps to its answer behind a prompt of two tokens, whatever came before."""
    ASKED.append(starts)
    return [list(ANSWER[len(start) - 2 :]) for start in starts]


def draft_argmax(sequences: Sequence[Tokens]) -> list[Tokens]:
    """A draft with other fillers and a wrong digit, which ends where the target goes on."""
    said = [WRONG_DIGIT if item == DIGIT else FILLERS.get(item, item) for item in ANSWER]
    said[4] = END
    return [([0, *said] + [0] * 9)[: len(row)] for row in sequences]


def is_correct(prompt: Tokens, answer: Tokens) -> bool:
    return DIGIT in answer and WRONG_DIGIT not in answer and prompt[0] != 9


def test_only_the_token_that_decides_is_an_error() -> None:
    ASKED.clear()
    judged = mine([[7, 8], [9, 8], [7, 9]], complete, draft_argmax, is_correct, stop_tokens=(END,))
    # The second question is answered wrongly in any case, and left out.
    assert {item.question for item in judged} == {0, 2}
    for question in (0, 2):
        labels = {
            place: (item.tokens[place], label)
            for item in judged
            if item.question == question
            for place, label in zip(item.positions, item.correct, strict=True)
        }
        assert labels == {2: (20, True), 3: (21, True), 4: (31, False), 5: (22, True)}
    # An error is judged behind what was accepted before it.
    wrong = next(item for item in judged if item.correct == (False,))
    assert wrong.tokens == [7, 8, 20, 21, WRONG_DIGIT]
    # One call for all answers, and one for each mismatch of all questions together.
    assert [len(starts) for starts in ASKED] == [3, 2, 2, 2, 2]


def test_mined_tokens_become_examples() -> None:
    judged = mine([[7, 8], [7, 9]], complete, draft_argmax, is_correct, stop_tokens=(END,))
    examples = judged_features(judged, states, batch_size=2)
    assert examples.features.shape == (8, 32)
    assert sorted(examples.questions.tolist()) == [0] * 4 + [1] * 4
    assert int(examples.correct.sum()) == 6
    row = int((~examples.correct).nonzero()[0])
    wrong = [[7, 8, 20, 21, 31], [7, 9, 20, 21, 31]][int(examples.questions[row])]
    torch.testing.assert_close(examples.features[row], states([wrong])[0][4].float())
