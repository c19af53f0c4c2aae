"""energy_resample: texts go from the denoiser's law to the autoregressive model's as k grows.

4096 texts of three tokens from a denoiser that is a random table, judged by a small decoder, whose
law of the 27 texts is enumerated as a plain module.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.from_masked import capture_masked_model
from optimize.ir import unmask_rules as rules
from optimize.ir.decode import DecodeLoop, Sampling
from optimize.ir.spec import check_program
from optimize.ir.unmask import Commit, UnmaskLoop
from optimize.passes.drafts.catalog import register_draft
from optimize.passes.energy_resample import EnergyResample
from optimize.passes.first_hitting import FirstHitting
from optimize.runtime import load
from tests.passes.drawn_texts import p_value
from tests.passes.enumerated_reveals import (
    KINDS,
    LENGTH,
    MASK,
    TableDenoiser,
    ancestral_law,
    distance,
    filled_in,
    first_hitting_law,
    named,
    noise,
    random_logits,
    softmax,
)
from tests.passes.judged_texts import (
    TEXTS,
    as_law,
    frequencies,
    judge,
    log_probabilities,
    of_two,
)

pytestmark = pytest.mark.slow

BATCH = 4096
FITS, DIFFERS = 1e-4, 1e-9
"""p-values above and below which texts have a law and do not."""

LOGITS = random_logits(scale=1.0)
WHOLE = (MASK,) * LENGTH
ONE_CALL = UnmaskLoop(
    MASK, LENGTH, max_prompt=0, remasking="ancestral", steps=1, sampling=Sampling(top_p=None)
)
JUDGE, START_TOKEN = "a judge of three tokens", 1


@pytest.fixture(scope="module")
def judging():
    """The judge as a module, and as a program."""
    made = judge()
    program = capture_decoder(made, DecodeLoop(max_prompt=8, max_new_tokens=2))
    register_draft(JUDGE, program)
    return made.decoder, program


@pytest.fixture(scope="module")
def decoder(judging):
    return judging[0]


@pytest.fixture(scope="module")
def target(decoder):
    """The judge's law of the 27 texts behind the start token."""
    whole = [[START_TOKEN, *text] for text in TEXTS]
    law = np.exp(log_probabilities(decoder, whole).sum(-1))
    assert law.sum() == pytest.approx(1)
    return law


@pytest.fixture(scope="module")
def base():
    """The denoiser's own law of a text that is drawn at one call."""
    law = named(ancestral_law(LOGITS, 1))
    return np.array([law[text] for text in TEXTS])


@pytest.fixture(scope="module")
def one_call():
    return capture_masked_model(TableDenoiser(LOGITS).eval(), loop=ONE_CALL)


@pytest.fixture(scope="module")
def four_calls():
    return capture_masked_model(TableDenoiser(LOGITS).eval(), loop=replace(ONE_CALL, steps=4))


def applied(program, **options):
    item = EnergyResample(**{"source": JUDGE, "start_token": START_TOKEN, **options})
    assert item.declines(program) is None
    after = item.rewrite(program).program
    check_program(after, "energy_resample")
    return after


def drawn(program, template=WHOLE, seed=0, batch=BATCH):
    return filled_in(program, template, seed, batch)["tokens"].numpy()


def test_two_candidates_have_the_enumerated_law(one_call, decoder, base, target):
    """Exact for k = 2, and closer to the target than one candidate."""
    expected = of_two(base, target)
    assert expected.sum() == pytest.approx(1)
    found = drawn(applied(one_call, candidates=2))
    assert p_value(found, as_law(expected)) > FITS
    for other in (base, target, of_two(base, target, -1)):
        assert p_value(found, as_law(other)) < DIFFERS


def test_texts_go_to_the_target_as_candidates_grow(one_call, base, target):
    """TV falls with k = 1, 2, 4, 16, 64."""
    found = {
        count: distance(
            frequencies(drawn(applied(one_call, candidates=count), batch=batch)), target
        )
        for count, batch in ((1, BATCH), (2, BATCH), (4, BATCH), (16, BATCH), (64, BATCH // 2))
    }
    assert found[1] == pytest.approx(distance(base, target), abs=0.03)
    assert found[2] == pytest.approx(distance(of_two(base, target), target), abs=0.03)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found[1] > 0.25 and found[64] < 0.25 * found[1]


def test_energies_of_the_wrong_sign_lead_away(one_call, base, target, monkeypatch):
    """The released sampler's sign."""
    right = rules.resampled
    monkeypatch.setattr(
        rules, "resampled", lambda texts, energies, *given: right(texts, -energies, *given)
    )
    found = [
        distance(frequencies(drawn(applied(one_call, candidates=count))), target)
        for count in (1, 2, 16)
    ]
    assert found == sorted(found)
    assert found[1] == pytest.approx(distance(of_two(base, target, -1), target), abs=0.03)
    assert found[2] > 1.3 * found[0]


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.6, 1.0), (0.0, 0.3)], ids=str)
def test_one_candidate_has_the_base_law(four_calls, decoder, window):
    found = drawn(applied(four_calls, candidates=1, window=window))
    assert p_value(found, named(ancestral_law(LOGITS, 4))) > FITS
    assert p_value(found, named(ancestral_law(LOGITS, 1))) < DIFFERS


def test_an_empty_window_keeps_every_text(four_calls):
    """The same noise, bit for bit; no energy is needed."""
    item = EnergyResample(candidates=3).identity()
    assert item.declines(four_calls) is None
    after = item.rewrite(four_calls).program
    assert list(after.graphs) == ["step"]
    np.testing.assert_array_equal(drawn(after), drawn(four_calls))
    # No call of these four has a masked share of 0.6: 1, 0.75, 0.5, 0.25.
    after = EnergyResample(source=JUDGE, window=(0.55, 0.7)).rewrite(four_calls).program
    np.testing.assert_array_equal(drawn(after), drawn(four_calls))


def test_the_window_says_which_calls_resample(four_calls, decoder):
    made = EnergyResample(source=JUDGE, window=(0.5, 0.75)).rewrite(four_calls)
    (repeat,) = made.program.loop.body
    assert repeat.steps == ("step", "resample", "resample", "step")
    assert made.details["calls"] == 4 and made.details["resampled"] == 2


def test_energies_are_constant_where_both_models_agree(judging):
    """A judge that looks at nothing, and a denoiser with its probabilities."""
    decoder, program = judging
    (name,) = [name for name in program.weights if "embed" in name]
    first = decoder.embed.weight.detach()[:1].expand(KINDS, -1).clone()
    register_draft("agrees", replace(program, weights={**program.weights, name: first}))
    zero, mask = torch.zeros(1, 1).long(), torch.ones(1, 1, 1, 1, dtype=torch.bool)
    with torch.no_grad():
        logits = functional_call(decoder, {"embed.weight": first}, (zero, zero, mask))[0, 0]
    assert logits.std() > 0.3
    table = np.broadcast_to(logits.numpy(), LOGITS.shape).astype(float)
    program = capture_masked_model(TableDenoiser(table).eval(), loop=ONE_CALL)
    after = applied(program, source="agrees", candidates=5)
    given = {"template": np.full((BATCH, LENGTH), MASK), **noise(after, BATCH, 0)}
    seen = after.watch(("energy", "candidates", "text"), **given)
    np.testing.assert_allclose(seen["energy"][0], 0, atol=5e-6)
    # Weights of 1 / 5: the kept one is the fifth in which the number of the choice lies.
    chosen = np.floor(given["choice_uniforms"][0] * 5).astype(int)
    expected = seen["candidates"][0].reshape(BATCH, 5, LENGTH)[np.arange(BATCH), chosen]
    np.testing.assert_array_equal(seen["text"][-1], expected)
    assert p_value(seen["text"][-1], named(ancestral_law(table, 1))) > FITS


TEMPLATES = np.array([WHOLE, (2, MASK, 1), (MASK, 0, MASK), (MASK, MASK, 2)])


def by_hand(decoder, template, candidates, start_token, carry_over):
    """Energies of candidates [k, L] of one template, in numpy."""
    masked = template == MASK
    state = int(template @ [16, 4, 1])
    shares = np.log(softmax(LOGITS)[state])
    denoiser = np.where(masked, shares[np.arange(LENGTH), candidates], 0.0)
    if start_token is None:
        scores = log_probabilities(decoder, candidates)
        denoiser, masked = denoiser[:, 1:], masked[1:]
    else:
        whole = np.concatenate([np.full_like(candidates[:, :1], start_token), candidates], 1)
        scores = log_probabilities(decoder, whole)
    if carry_over:
        scores = np.where(masked, scores, 0.0)
    return (denoiser - scores).sum(-1)


@pytest.mark.parametrize("start_token", [None, 0, 2])
@pytest.mark.parametrize("carry_over", [False, True], ids=["full", "carry-over"])
def test_energies_are_the_difference_of_log_probabilities(
    one_call, decoder, start_token, carry_over
):
    count = 6
    after = applied(one_call, candidates=count, start_token=start_token, carry_over=carry_over)
    seen = after.watch(("energy", "candidates"), template=TEMPLATES, seed=0)
    energies = seen["energy"][0].reshape(-1, count)
    candidates = seen["candidates"][0].reshape(-1, count, LENGTH)
    for row, template in enumerate(TEMPLATES):
        expected = by_hand(decoder, template, candidates[row], start_token, carry_over)
        np.testing.assert_allclose(energies[row], expected, atol=5e-6)
        given = template != MASK
        assert (candidates[row][:, given] == template[given]).all()


def test_one_mask_has_the_posterior_of_both_sides(one_call, decoder, target):
    """Bayes by brute force; what comes after the mask counts as evidence."""
    template = (2, MASK, 1)
    numbers = [TEXTS.index((2, token, 1)) for token in range(KINDS)]
    posterior = target[numbers] / target[numbers].sum()
    before = np.array([[START_TOKEN, 2, token] for token in range(KINDS)])
    left_only = np.exp(log_probabilities(decoder, before)[:, -1])
    assert distance(posterior, left_only) > 0.1
    for carry_over, expected, other in (
        (False, posterior, left_only),
        (True, left_only, posterior),
    ):
        after = applied(one_call, candidates=32, carry_over=carry_over)
        found = np.bincount(drawn(after, template, batch=2000)[:, 1], minlength=KINDS) / 2000
        # Three standard deviations of a share, and the bias of 32 candidates.
        assert distance(found, expected) < 0.04 < distance(found, other) - 0.02


def test_samples_of_a_batch_are_independent(four_calls, decoder):
    """With noise given for every sample."""
    after = applied(four_calls, candidates=3)
    given = noise(after, len(TEMPLATES), 5)
    together = after(template=TEMPLATES, **given)["tokens"]
    for row, template in enumerate(TEMPLATES):
        own = {name: numbers[:, row : row + 1] for name, numbers in given.items()}
        alone = after(template=template[None], **own)["tokens"]
        np.testing.assert_array_equal(alone[0], together[row])


def test_what_is_filled_in_stays(four_calls, decoder):
    after = applied(four_calls, candidates=3)
    template = np.tile(TEMPLATES, (64, 1))
    texts = np.stack([template, *after.watch(("text",), template=template, seed=0)["text"]])
    known = texts[:-1] != MASK
    assert (texts[1:] == texts[:-1])[known].all() and (texts[-1] != MASK).all()
    # Masks go at different calls, by their coins.
    assert ((texts[1:-1] == MASK).any((1, 2))).all()


def test_after_first_hitting_each_reveal_is_resampled(four_calls, decoder, target):
    groups = FirstHitting(calls=2).rewrite(four_calls).program
    law = first_hitting_law(LOGITS, (2, 1))
    base = np.array([named(law)[text] for text in TEXTS])
    one = drawn(applied(groups, candidates=1))
    assert p_value(one, named(law)) > FITS
    several = distance(frequencies(drawn(applied(groups, candidates=16))), target)
    assert several < 0.5 * distance(base, target)


def test_energies_share_a_prompt_with_the_text(decoder):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(KINDS + 1, 8), nn.Linear(8, KINDS)

        def forward(self, input_ids):
            rows = self.embed(input_ids)
            return self.head(rows + rows.mean(1, keepdim=True))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Mean().eval()
    loop = replace(ONE_CALL, max_prompt=4)
    # A start token is for texts without a prompt only.
    after = applied(capture_masked_model(module, loop=loop), candidates=4)
    prompt = np.array([[0, 2, 1, 1], [1, 1, 0, 2]])
    slots = ("energy", "candidates", "log_probabilities")
    seen = after.watch(slots, input_ids=prompt, seed=0)
    candidates = seen["candidates"][0]
    whole = np.concatenate([np.repeat(prompt, 4, 0), candidates], 1)
    scores = log_probabilities(decoder, whole)[:, -LENGTH:].sum(-1)
    masked = np.concatenate([prompt, np.full((2, LENGTH), MASK)], 1)
    logits = module(torch.from_numpy(masked)).detach().double()[:, -LENGTH:]
    shares = torch.log_softmax(logits, -1).repeat_interleave(4, 0)
    own = shares.gather(-1, torch.from_numpy(candidates)[..., None])[..., 0].numpy()
    np.testing.assert_allclose(seen["log_probabilities"][0], own, atol=1e-6)
    np.testing.assert_allclose(seen["energy"][0], own.sum(-1) - scores, atol=5e-6)


def test_the_temperature_softens_weights(one_call, base, target):
    weights = (target / base) ** 0.25
    pairs = base[:, None] * base / (weights[:, None] + weights)
    found = drawn(applied(one_call, candidates=2, temperature=4.0))
    assert p_value(found, as_law(2 * (pairs * weights[:, None]).sum(1))) > FITS
    assert p_value(found, as_law(of_two(base, target))) < DIFFERS


def test_a_bundle_draws_the_same_texts(four_calls, decoder, tmp_path):
    """In ONNX Runtime, too."""
    after = applied(four_calls, candidates=3, window=(0.5, 1.0))
    after.export(tmp_path / "bundle")
    with load(tmp_path / "bundle", threads=1) as session:
        found = session(template=TEMPLATES, seed=4)["tokens"]
    np.testing.assert_array_equal(found, after(template=TEMPLATES, seed=4)["tokens"])


def test_its_own_checks_hold(four_calls, decoder):
    item = EnergyResample(source=JUDGE)
    made = item.rewrite(four_calls)
    request = {"template": TEMPLATES, "seed": 1}
    assert all(check.holds for check in item.oracles(four_calls, made.program, request))


def test_declines_with_a_reason(one_call, judging):
    judge = judging[1]
    four = replace(judge.decoding, vocabulary=4)
    short = replace(judge.decoding, loop=DecodeLoop(max_prompt=2, max_new_tokens=1))
    register_draft("four tokens", replace(judge, decoding=four))
    register_draft("short", replace(judge, decoding=short))
    register_draft("masked", one_call)

    def with_loop(**options):
        loop = replace(one_call.unmasking.loop, **options)
        return replace(one_call, unmasking=replace(one_call.unmasking, loop=loop))

    def chosen(**passes):
        return replace(one_call, unmasking=replace(one_call.unmasking, **passes))

    hitting = FirstHitting(calls=2, chosen_rows=False, extrapolate=True).rewrite(one_call).program
    commit = Commit((1.0,), ())
    judged = EnergyResample(source=JUDGE)
    reasons = [
        (judged, replace(one_call, unmasking=None), "does not fill in masked text"),
        (judged, with_loop(sampling=None), "takes the likeliest tokens"),
        (judged, with_loop(remasking="low_confidence"), "'low_confidence' depends on how sure"),
        (judged, chosen(commit=commit), "commits early; use one of the two"),
        (judged, judged.rewrite(one_call).program, "resamples already"),
        (judged, hitting, "extrapolates predictions of single tokens"),
        (EnergyResample(), one_call, "found no source of an energy; give one"),
        (EnergyResample(source="four tokens"), one_call, "a vocabulary of 4 tokens, expected 3"),
        (EnergyResample(source="masked"), one_call, "a program that does not generate tokens"),
        (EnergyResample(source=JUDGE, start_token=3), one_call, r"found 3, expected one in [0, 3)"),
        (
            EnergyResample(source="short", start_token=0),
            one_call,
            "captured for 3 tokens, expected at least 4",
        ),
    ]
    for item, program, reason in reasons:
        assert reason in (item.declines(program) or ""), reason
    assert EnergyResample(source="short").declines(one_call) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, r"candidates: found 0, expected a number in \[1, 1024\]"),
        ({"candidates": 1025}, "candidates: found 1025"),
        ({"window": (-0.1, 1.0)}, r"window: found \[-0.1, 1.0\], expected two masked shares"),
        ({"window": (0.0, 0.5, 1.0)}, "window: found"),
        ({"window": (0.0, float("nan"))}, "window: found"),
        ({"temperature": 0.0}, r"temperature: found 0.0, expected a number in \(0, 1000\]"),
        ({"temperature": float("nan")}, "temperature: found nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EnergyResample(**options)
