"""Masked-diffusion language models as programs: the published loop by hand, bundles, bad input."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from optimize.capture.from_masked import capture_masked_model
from optimize.ir.decode import Sampling
from optimize.ir.errors import InputModelError
from optimize.ir.unmask import UnmaskLoop
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel
from optimize.runtime import load
from optimize.runtime.errors import RuntimeInputError

TEXT, MASK, LOGITS = 40, 44, 48
"""Tokens of text; the mask's; logits, of which some stand for neither."""

LENGTH, BLOCK, STEPS, MOST = 12, 6, 8, 16
LOOP = UnmaskLoop(MASK, LENGTH, block_length=BLOCK, steps=STEPS, max_prompt=MOST, vocabulary=TEXT)


class Llada(nn.Module):
    """More logits than text, the mask's among them, returned in an object."""

    def __init__(self, shift: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.inner = MaskedLanguageModel(LOGITS - 1, 32, 1, 2, 48)
            self.inner.head = nn.Linear(32, LOGITS, bias=False)
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.35)

    def forward(self, input_ids: torch.Tensor, attention_mask: object = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(input_ids))


class Shifted(nn.Module):
    """Row i foretells token i + 1 of a sequence that it knows."""

    def __init__(self, sequence: torch.Tensor) -> None:
        super().__init__()
        following = torch.cat([sequence[1:], sequence[:1]])
        one_hot = nn.functional.one_hot(following, LOGITS)
        self.table = nn.Parameter(10.0 * one_hot.float())

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        table = self.table[: input_ids.shape[1]]
        return (table.expand(input_ids.shape[0], -1, -1),)


class Timed(nn.Module):
    """An MDLM-like denoiser: token `round(8 * sigma)` everywhere, for what time it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, indices: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(LOGITS, device=indices.device)
        scores = -(numbers - self.scale * sigma[:, None]).abs()
        return scores[:, None].expand(-1, indices.shape[1], -1)


@pytest.fixture(scope="module")
def module():
    return Llada().eval()


@pytest.fixture(scope="module")
def program(module):
    return capture_masked_model(module, loop=LOOP)


@pytest.fixture(scope="module")
def session(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llada") / "bundle"
    program.export(folder)
    with load(folder, threads=1) as opened:
        yield opened


def prompts(length, batch=2):
    return np.random.default_rng(length).integers(0, TEXT, (batch, length))


@torch.no_grad()
def by_hand(module, prompt, score="low_confidence"):
    """The loop of Nie et al. (2025) in plain torch: blocks, remasking, the likeliest tokens.

    Returns:
        The text after each call, [calls, B, L].
    """
    given = torch.from_numpy(prompt)
    x = torch.cat([given, torch.full((len(given), LENGTH), MASK)], 1)
    start, seen = given.shape[1], []
    per_block = STEPS // (LENGTH // BLOCK)
    for block in range(LENGTH // BLOCK):
        first, end = start + block * BLOCK, start + (block + 1) * BLOCK
        masks = (x[:, first:end] == MASK).sum(1)
        for step in range(per_block):
            logits = module(x).logits[..., :TEXT]
            x0 = logits.argmax(-1)
            shares = torch.softmax(logits, -1)
            if score == "low_confidence":
                confidence = shares.gather(-1, x0[..., None])[..., 0]
            elif score == "margin":
                best = shares.topk(2).values
                confidence = best[..., 0] - best[..., 1]
            else:
                confidence = (shares * (shares + 1e-10).log()).sum(-1)
            confidence[:, end:] = -torch.inf
            confidence[x != MASK] = -torch.inf
            for row in range(len(x)):
                count = int(masks[row]) // per_block + (step < int(masks[row]) % per_block)
                chosen = confidence[row].topk(count).indices
                x[row, chosen] = x0[row, chosen]
            seen.append(x[:, start:].clone().numpy())
    return np.stack(seen)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_texts_are_those_of_the_published_loop(module, program, length):
    """Token by token, after every call."""
    prompt = prompts(length)
    expected = by_hand(module, prompt)
    found = program.watch(("text",), input_ids=prompt)["text"]
    np.testing.assert_array_equal(np.stack(found), expected)
    results = program(input_ids=prompt)
    np.testing.assert_array_equal(results["tokens"], expected[-1])
    assert results["calls"].tolist() == [STEPS] * 2
    # The texts say something: they depend on the prompt and are not one token.
    assert len(np.unique(expected[-1])) > 4
    assert (expected[-1][0] != expected[-1][1]).any()


@pytest.mark.parametrize("remasking", ["margin", "entropy"])
def test_other_scores_choose_other_masks(module, remasking):
    program = capture_masked_model(module, loop=replace(LOOP, remasking=remasking))
    prompt = prompts(5)
    found = np.stack(program.watch(("text",), input_ids=prompt)["text"])
    np.testing.assert_array_equal(found, by_hand(module, prompt, remasking))
    assert (found != by_hand(module, prompt)).any()


@pytest.mark.parametrize("length", [1, 2, 9, MOST])
def test_a_bundle_makes_the_same_tokens(program, session, length):
    prompt = prompts(length, batch=3)
    expected = program(input_ids=prompt)
    found = session(input_ids=prompt)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_array_equal(found["calls"], expected["calls"])


def test_a_session_streams_blocks_as_they_are_filled_in(session):
    prompt = prompts(4, batch=1)
    parts = [part for part in session.stream(input_ids=prompt) if (part >= 0).any()]
    assert [part.shape[1] for part in parts] == [BLOCK, BLOCK]
    whole = session(input_ids=prompt)["tokens"]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_streams_of_several_samples_end_at_their_own_pace(session):
    """One text has its first block given, and gets its second before the other has any."""
    template = np.full((2, LENGTH), MASK)
    template[0, :BLOCK] = np.arange(BLOCK)
    request = {"input_ids": prompts(4), "template": template}
    whole = session(**request)["tokens"]
    joined = [[], []]
    for part in session.stream(**request):
        for row in range(2):
            joined[row].extend(part[row][part[row] >= 0].tolist())
    np.testing.assert_array_equal(np.array(joined), whole)
    np.testing.assert_array_equal(whole[0, :BLOCK], np.arange(BLOCK))


def test_the_module_is_left_as_it_was(module):
    before = {name: item.clone() for name, item in module.state_dict().items()}
    capture_masked_model(module, loop=replace(LOOP, max_prompt=0))
    assert all(torch.equal(item, before[name]) for name, item in module.state_dict().items())


@pytest.mark.parametrize("length", [1, 3])
def test_shifted_logits_reproduce_the_sequence_and_only_then(length):
    """A Dream-shaped model."""
    sequence = torch.from_numpy(np.random.default_rng(8).permutation(TEXT)[: LENGTH + MOST])
    wanted = sequence[length : length + LENGTH].numpy()
    prompt = sequence[None, :length].numpy()
    for shifted in (True, False):
        loop = replace(LOOP, block_length=None, shifted=shifted)
        program = capture_masked_model(Shifted(sequence).eval(), loop=loop)
        found = program(input_ids=prompt)["tokens"][0].numpy()
        assert (found == wanted).all() == shifted
        if not shifted:
            np.testing.assert_array_equal(found[:-1], wanted[1:])


def test_shifted_logits_without_a_prompt_repeat_the_first_row():
    sequence = torch.arange(LENGTH)
    loop = replace(LOOP, max_prompt=0, shifted=True)
    found = capture_masked_model(Shifted(sequence).eval(), loop=loop)()["tokens"][0]
    assert found.tolist() == [1, *range(1, LENGTH)]


@pytest.mark.parametrize("time", ["t", "sigma"])
def test_a_model_with_a_time_gets_the_masked_share_of_its_call(time):
    loop = UnmaskLoop(
        MASK, 4, max_prompt=0, tokens="indices", timestep="sigma", time=time, vocabulary=TEXT
    )
    program = capture_masked_model(Timed().eval(), loop=replace(loop, remasking="low_confidence"))
    assert program.unmasking.timed
    texts = np.stack(program.watch(("text",))["text"])[:, 0]
    shares = np.clip([1.0, 0.75, 0.5, 0.25], 1e-4, 1 - 1e-4)
    expected = np.round(8 * (shares if time == "t" else -np.log1p(-shares)))
    # All masks are as sure: the first of them goes first.
    np.testing.assert_array_equal(texts[-1], np.minimum(expected, TEXT - 1))


def test_what_is_drawn_follows_the_temperature(module):
    loop = replace(LOOP, sampling=Sampling(top_p=0.9, top_k=5))
    program = capture_masked_model(module, loop=loop)
    prompt = prompts(3)
    cold = program(input_ids=prompt, temperature=1e-3, seed=0)["tokens"]
    np.testing.assert_array_equal(cold, by_hand(module, prompt)[-1])
    texts = [program(input_ids=prompt, temperature=2.0, seed=seed)["tokens"] for seed in (0, 0, 1)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    assert all(((item >= 0) & (item < TEXT)).all() for item in texts)


@pytest.mark.parametrize(("length", "prompt"), [(1, 1), (1, 4), (2, 2)])
def test_the_shortest_texts_and_prompts(module, length, prompt):
    loop = UnmaskLoop(MASK, length, max_prompt=prompt, vocabulary=TEXT)
    program = capture_masked_model(module, loop=loop)
    for count in {1, prompt}:
        given = torch.from_numpy(prompts(count))
        found = program(input_ids=given)["tokens"]
        if length == 1:
            whole = torch.cat([given, torch.full((2, 1), MASK)], 1)
            assert torch.equal(found, module(whole).logits[:, -1:, :TEXT].argmax(-1))
        assert found.shape == (2, length) and (found < TEXT).all()


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_texts_without_prompts(module, length):
    loop = UnmaskLoop(MASK, length, max_prompt=0, vocabulary=TEXT)
    found = capture_masked_model(module, loop=loop)(batch=2)["tokens"]
    whole = torch.full((2, length), MASK)
    # The first call fills in the surest token of the text without any.
    likeliest = module(whole).logits[..., :TEXT].argmax(-1)
    assert (found == likeliest).any(-1).all() and (found < TEXT).all()


class Placed(Llada):
    """Positions from a table, of so many rows as prompt and text have at most."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(6)
            self.places = nn.Parameter(torch.randn(rows, LOGITS))

    def forward(self, input_ids: torch.Tensor, attention_mask: object = None) -> SimpleNamespace:
        logits = self.inner(input_ids) + self.places[: input_ids.shape[1]]
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("most", [3, MOST])
def test_a_table_of_positions_may_end_with_the_text(most):
    module = Placed(LENGTH + most).eval()
    program = capture_masked_model(module, loop=replace(LOOP, max_prompt=most))
    for length in (1, most):
        found = program(input_ids=prompts(length))["tokens"]
        np.testing.assert_array_equal(found, by_hand(module, prompts(length))[-1])


def test_a_mask_that_is_a_token_of_the_logits_is_refused_in_prompts(module):
    program = capture_masked_model(module, loop=replace(LOOP, vocabulary=None))
    found = program(input_ids=prompts(3))["tokens"]
    assert (found != MASK).all()
    with pytest.raises(RuntimeInputError, match="input_ids: .*44"):
        program(input_ids=np.array([[1, MASK, 2]]))


def test_a_prompt_may_have_tokens_that_text_may_not(program):
    found = program(input_ids=np.array([[1, TEXT, 2]]))["tokens"]
    assert (found < TEXT).all()


BAD_REQUESTS = {
    "prompt too long": ({"input_ids": prompts(MOST + 1)}, "prompt: found 17"),
    "no prompt": ({}, "'input_ids' is missing"),
    "empty prompt": ({"input_ids": np.zeros((2, 0), np.int64)}, "prompt"),
    "mask in the prompt": (
        {"input_ids": np.array([[1, MASK, 2]])},
        f"input_ids: found {MASK} at index [0, 1]",
    ),
    "token beyond the logits": (
        {"input_ids": np.array([[1, LOGITS, 2]])},
        "input_ids: found values in [1, 48]",
    ),
    "prompts of unequal lengths": (
        {"input_ids": [[1, 2, 3], [1, 2]]},
        "input_ids: found lists of unequal lengths",
    ),
    "negative token": ({"input_ids": np.array([[-1, 2]])}, "input_ids: found values in [-1, 2]"),
    "other dtype": ({"input_ids": np.zeros((2, 3), np.float32)}, "input_ids: found dtype float32"),
    "template of another length": (
        {"input_ids": prompts(3), "template": np.zeros((2, LENGTH + 1), np.int64)},
        "template",
    ),
    "template with no such token": (
        {"input_ids": prompts(3), "template": np.full((2, LENGTH), MASK + 1)},
        "template",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_requests_that_do_not_fit_are_refused(program, name):
    request, message = BAD_REQUESTS[name]
    with pytest.raises(RuntimeInputError, match=re.escape(message)):
        program(**request)


BAD_LOOPS = {
    "no embedding of the mask": (
        {"mask_id": LOGITS, "vocabulary": None},
        "found no embedding of the mask, token 48",
    ),
    "more text than logits": (
        {"vocabulary": LOGITS + 1, "mask_id": LOGITS + 1},
        "no embedding|found vocabulary 49, expected at most 48",
    ),
    "stop token that is the mask": ({"stop_tokens": (MASK,)}, "found 44 in stop_tokens"),
    "no such argument": ({"tokens": "ids"}, "cannot be called with 'ids'"),
    "no time": ({"timestep": "sigma"}, "cannot be called with 'input_ids' and 'sigma'"),
}


@pytest.mark.parametrize("name", BAD_LOOPS)
def test_loops_that_do_not_fit_the_model_are_refused(module, name):
    options, message = BAD_LOOPS[name]
    with pytest.raises(InputModelError, match=message):
        capture_masked_model(module, loop=replace(LOOP, **options))


def test_a_module_with_no_logits_of_every_token_is_refused(module):
    class Pooled(Llada):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids).logits.mean(1)

    class Named(Llada):
        def forward(self, input_ids, attention_mask=None):
            return {"logits": super().forward(input_ids).logits}

    with pytest.raises(InputModelError, match=r"returned \[2, 48\] for tokens \[2, 7\]"):
        capture_masked_model(Pooled().eval(), loop=LOOP)
    with pytest.raises(InputModelError, match="returned dict, expected logits"):
        capture_masked_model(Named().eval(), loop=LOOP)


def test_weights_that_are_no_numbers_are_refused():
    broken = Llada().eval()
    with torch.no_grad():
        broken.inner.head.weight[3, 5] = torch.nan
    with pytest.raises(Exception, match="[Nn]a[Nn]"):
        capture_masked_model(broken, loop=LOOP)
