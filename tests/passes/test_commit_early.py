"""commit_early: what is left is filled in at the call whose gap reaches the threshold, not before.

A bidirectional transformer with random weights; its calls by hand give the logits, gaps and texts
that the program must have.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from optimize.capture.from_masked import capture_masked_model
from optimize.ir.spec import check_program
from optimize.ir.unmask import FirstHitting as Hitting
from optimize.ir.unmask import Resample, UnmaskLoop
from optimize.passes.commit_early import CommitEarly
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.runtime import load

VOCABULARY, LENGTH, PROMPT, STEPS = 40, 16, 5, 16
MASK = VOCABULARY
LOOP = UnmaskLoop(MASK, LENGTH, block_length=8, steps=STEPS, max_prompt=8)
NEVER = (math.inf, math.inf, math.inf)
REGION = {"answer_start": 10, "answer_length": 4}


def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = MaskedLanguageModel(VOCABULARY, 32, 2, 2, 48)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.35)
    return made.eval()


@pytest.fixture(scope="module")
def module():
    return model()


@pytest.fixture(scope="module")
def program(module):
    return capture_masked_model(module, loop=LOOP)


@pytest.fixture(scope="module")
def prompts():
    return np.random.default_rng(0).integers(0, VOCABULARY, (4, PROMPT))


def applied(program, **options):
    item = CommitEarly(**options)
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after, "commit_early")
    return after


def states(program, prompts):
    """Texts before the first call and after each, [calls + 1, B, L]."""
    given = np.full((1, len(prompts), LENGTH), MASK)
    return np.concatenate([given, np.stack(program.watch(("text",), input_ids=prompts)["text"])])


@torch.no_grad()
def logits_of(module, prompt, text):
    """By hand, of the text's rows [L, V] float32."""
    whole = torch.from_numpy(np.concatenate([prompt, text]))[None]
    return module(whole)[0, len(prompt) :].numpy()


def gaps(logits):
    best = np.sort(logits, -1)
    return best[:, -1] - best[:, -2]


def exit_step(module, prompt, texts, thresholds, counted):
    """The first call whose mean gap reaches its threshold, from 1; else the last.

    Args:
        texts: [calls + 1, L] of the loop that does not commit.
        counted: text [L] → which tokens the mean is over.
    """
    for step, text in enumerate(texts[:-1], 1):
        which = counted(text)
        progress = step / STEPS
        threshold = thresholds[(progress >= 0.33) + (progress >= 0.67)]
        if not which.any() or gaps(logits_of(module, prompt, text))[which].mean() >= threshold:
            return step
    return len(texts) - 1


def test_thresholds_that_nothing_reaches_change_nothing(program, prompts):
    """Token by token, call by call."""
    after = applied(program, thresholds=NEVER, **REGION)
    np.testing.assert_array_equal(states(after, prompts), states(program, prompts))
    assert after(input_ids=prompts)["calls"].tolist() == [STEPS] * 4


def test_identity_changes_nothing(program, prompts):
    item = CommitEarly(gap_over="masked", **REGION).identity()
    after = item.rewrite(program).program
    np.testing.assert_array_equal(states(after, prompts), states(program, prompts))
    assert (after(input_ids=prompts)["calls"] == STEPS).all()


@pytest.mark.parametrize("options", [{}, REGION], ids=["all that is left", "region"])
def test_thresholds_that_every_gap_reaches_take_one_call(module, program, prompts, options):
    """The likeliest tokens of the fully masked text."""
    found = applied(program, thresholds=(0.0, 0.0, 0.0), **options)(input_ids=prompts)
    assert found["calls"].tolist() == [1] * 4
    for prompt, text in zip(prompts, found["tokens"].numpy(), strict=True):
        expected = logits_of(module, prompt, np.full(LENGTH, MASK)).argmax(-1)
        np.testing.assert_array_equal(text, expected)


def in_region(text):
    numbers = np.arange(LENGTH)
    return (numbers >= 10) & (numbers < 14)


COUNTED = {
    "all that is left": ({}, lambda text: text == MASK),
    "region": (REGION, in_region),
    "masked in the region": (
        {**REGION, "gap_over": "masked"},
        lambda text: in_region(text) & (text == MASK),
    ),
}


def finite(module, program, prompts, counted):
    """Thresholds that some calls reach: in proportion to the published ones, of one row's gaps."""
    texts = states(program, prompts)[:, 0]
    means = [
        gaps(logits_of(module, prompts[0], text))[counted(text)].mean()
        for text in texts[3:-1]
        if counted(text).any()
    ]
    scale = float(np.quantile(means, 0.6)) / 5
    return tuple(scale * item for item in (7.5, 5.0, 2.5))


@pytest.mark.parametrize("name", COUNTED)
def test_the_rest_is_filled_in_at_the_call_that_is_certain(module, program, prompts, name):
    """Of four samples that commit at their own calls."""
    options, counted = COUNTED[name]
    thresholds = finite(module, program, prompts, counted)
    after = applied(program, thresholds=thresholds, **options)
    plain, found = states(program, prompts), states(after, prompts)
    calls = after(input_ids=prompts)["calls"].tolist()
    steps = [
        exit_step(module, prompt, plain[:, row], thresholds, counted)
        for row, prompt in enumerate(prompts)
    ]
    assert calls == steps
    # The thresholds say something: not all commit at the first call, or at none or the same.
    assert min(steps) < STEPS and max(steps) > 1 and len(set(steps)) > 1
    for row, (prompt, step) in enumerate(zip(prompts, steps, strict=True)):
        np.testing.assert_array_equal(found[:step, row], plain[:step, row])
        before = plain[step - 1, row]
        likeliest = logits_of(module, prompt, before).argmax(-1)
        if step < STEPS:
            expected = np.where(before == MASK, likeliest, before)
            np.testing.assert_array_equal(found[-1, row], expected)


def test_what_is_filled_in_stays_and_blocks_wait_for_their_turn(module, program, prompts):
    thresholds = finite(module, program, prompts, COUNTED["region"][1])
    after = applied(program, thresholds=thresholds, **REGION)
    found = states(after, prompts)
    known = found[:-1] != MASK
    # A run ends with the call after which all samples are finished.
    assert (found[1:] == found[:-1])[known].all()
    for row, calls in enumerate(after(input_ids=prompts)["calls"].tolist()):
        masked = found[:calls, row] == MASK
        # Reveal counts are even here: one token a call, the second block after the first.
        np.testing.assert_array_equal(masked.sum(-1), LENGTH - np.arange(calls))
        assert masked[: min(calls, 9), 8:].all()
        assert (found[calls:, row] != MASK).all()


def test_samples_of_a_batch_are_independent(module, program, prompts):
    thresholds = finite(module, program, prompts, COUNTED["region"][1])
    after = applied(program, thresholds=thresholds, **REGION)
    together = after(input_ids=prompts)
    for row, prompt in enumerate(prompts):
        alone = after(input_ids=prompt[None])
        np.testing.assert_array_equal(alone["tokens"][0], together["tokens"][row])
        assert alone["calls"][0] == together["calls"][row]


def test_given_tokens_count_in_the_region_and_not_among_masks(module, program, prompts):
    """A region that is given whole is certain at once where only masks count."""
    template = np.full((4, LENGTH), MASK)
    template[:, 10:14] = [1, 2, 3, 4]
    given = {"template": template, "input_ids": prompts}
    large = {"thresholds": (9999.0,) * 3, **REGION}
    masked = applied(program, **large, gap_over="masked")(**given)
    whole = applied(program, **large)(**given)
    assert masked["calls"].tolist() == [1] * 4
    # Twelve masks, in sixteen steps: those without a reveal call the model, too.
    assert whole["calls"].min() > 1
    assert (masked["tokens"][:, 10:14] == torch.tensor([1, 2, 3, 4])).all()


def test_a_bundle_commits_at_the_same_calls(module, program, prompts, tmp_path):
    thresholds = finite(module, program, prompts, COUNTED["region"][1])
    after = applied(program, thresholds=thresholds, **REGION)
    after.export(tmp_path / "bundle")
    with load(tmp_path / "bundle", threads=1) as session:
        found = session(input_ids=prompts)
    expected = after(input_ids=prompts)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_array_equal(found["calls"], expected["calls"])


def test_it_says_that_it_is_lossy_and_its_checks_hold(module, program, prompts):
    thresholds = finite(module, program, prompts, COUNTED["region"][1])
    item = CommitEarly(thresholds=thresholds, **REGION)
    made = item.rewrite(program)
    assert made.details["lossy"] and any("lossy" in note for note in made.program.notes)
    request = {"input_ids": prompts}
    assert all(check.holds for check in item.oracles(program, made.program, request))
    figures = item.figures(program, made.program, request)
    assert figures["calls_before"] == STEPS and figures["calls"] < STEPS


def test_declines_where_there_are_no_logits_of_the_answer(program):
    def chosen(**passes):
        return replace(program, unmasking=replace(program.unmasking, **passes))

    hitting, resample = Hitting((1,) * 8), Resample(2, (0.0, 1.0), 1.0)
    reasons = [
        (CommitEarly(), replace(program, unmasking=None), "does not fill in masked text"),
        (CommitEarly(), applied(program), "commits early already"),
        (CommitEarly(), chosen(first_hitting=hitting), "first_hitting computes no logits"),
        (CommitEarly(), chosen(resample=resample), "energy_resample chooses among whole texts"),
        (CommitEarly(answer_start=12), program, "tokens 12 to 16, lies outside the text of 16"),
    ]
    for item, before, reason in reasons:
        assert reason in (item.declines(before) or ""), reason
    assert CommitEarly(answer_start=11).declines(program) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": (1.0, 2.0)}, "found 2 for 2 breakpoints, expected one more"),
        ({"thresholds": (-1.0, 0.0, 0.0)}, r"found -1.0, expected gaps between logits"),
        ({"thresholds": (math.nan, 0.0, 0.0)}, "found nan, expected gaps"),
        ({"thresholds": (10001.0, 0.0, 0.0)}, r"found 10001.0, expected .* \[0, 10000\], or inf"),
        ({"breakpoints": (0.67, 0.33)}, r"breakpoints: found \[0.67, 0.33\], expected increasing"),
        ({"breakpoints": (0.0, 0.5)}, r"breakpoints: found \[0.0, 0.5\], expected .* in \(0, 1\)"),
        ({"breakpoints": (0.5, math.nan)}, "breakpoints: found"),
        ({"answer_start": -1}, "answer_start: found -1, expected at least 0"),
        ({"answer_length": 0}, "answer_length: found 0, expected at least 1"),
        ({"gap_over": "all"}, "gap_over: found 'all', expected one of region, masked"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CommitEarly(**options)
