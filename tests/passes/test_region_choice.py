"""The region choice as graph nodes: counts, fairness, scale, and where tokens lie."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import Builder, fake_mode_of
from optimize.ir.token_axis import token_axis
from optimize.passes.region_choice import Counts, choose, token_scores

TOKENS, STEPS = 256, 28


def choice_graph(counts: Counts, starvation: float, batch: int = 1):
    builder = Builder(FakeTensorMode())
    score, drops, age = (
        builder.input(name, builder.fake((batch, counts.tokens), torch.float32))
        for name in ("score", "drops", "age")
    )
    made = choose(builder, counts, starvation, score, drops, age)
    return builder.finish({"index": made.index, "drops": made.drops, "age": made.age}, {})


def longest_wait(counts: Counts, starvation: float) -> tuple[int, int]:
    """(tokens never recomputed, longest wait) over steps of a persistent per-token score."""
    graph = choice_graph(counts, starvation)
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(1, counts.tokens, generator=generator) + 0.05
    drops, age = torch.zeros_like(level), torch.zeros_like(level)
    seen = torch.zeros_like(level)
    longest = 0
    for _ in range(STEPS):
        score = level * (1 + 0.1 * torch.rand(level.shape, generator=generator))
        out = graph.run({}, {"score": score, "drops": drops, "age": age})
        drops, age = out["drops"], out["age"]
        seen += age == 0
        longest = max(longest, int(age.max()))
    return int((seen == 0).sum()), longest


@pytest.mark.parametrize("high", [0, 38, 128])
def test_rows_are_distinct_ascending_and_as_many_as_asked(high):
    graph = choice_graph(Counts(TOKENS, 128, 128 - high, high, 16), 0.1, batch=3)
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(3, TOKENS, generator=generator)
    zeros = torch.zeros_like(score)
    out = graph.run({}, {"score": score, "drops": zeros, "age": zeros})
    index = out["index"]
    assert index.shape == (3, 128) and bool((index.diff(dim=1) > 0).all())
    active = torch.zeros_like(score).scatter(1, index, 1.0)
    # Active and inactive are a partition, and the counters say which is which.
    assert torch.equal(out["age"] == 0, active == 1)
    assert torch.equal(out["drops"], 1 - active)


def test_lowest_scores_are_dropped_when_nothing_starved():
    graph = choice_graph(Counts(8, 4, 4, 0, 0), 0.1)
    score = torch.tensor([[5.0, 1.0, 6.0, 2.0, 7.0, 3.0, 8.0, 4.0]])
    zeros = torch.zeros_like(score)
    out = graph.run({}, {"score": score, "drops": zeros, "age": zeros})
    assert out["index"].tolist() == [[0, 2, 4, 6]]


def test_highest_scores_are_dropped_from_the_top():
    graph = choice_graph(Counts(8, 4, 2, 2, 0), 0.1)
    score = torch.tensor([[5.0, 1.0, 6.0, 2.0, 7.0, 3.0, 8.0, 4.0]])
    zeros = torch.zeros_like(score)
    out = graph.run({}, {"score": score, "drops": zeros, "age": zeros})
    assert out["index"].tolist() == [[0, 2, 5, 7]]


def test_choice_does_not_depend_on_the_scale_of_the_scores():
    graph = choice_graph(Counts(TOKENS, 64, 150, 42, 8), 0.1)
    score = torch.rand(1, TOKENS, generator=torch.Generator().manual_seed(3))
    drops = torch.randint(0, 9, (1, TOKENS)).float()
    one = graph.run({}, {"score": score, "drops": drops, "age": drops})["index"]
    other = graph.run({}, {"score": score * 4096.0, "drops": drops, "age": drops})["index"]
    assert torch.equal(one, other)


@pytest.mark.parametrize("high", [0, 38, 128], ids=["bottom", "both", "top"])
def test_no_token_starves_at_half(high):
    never, longest = longest_wait(Counts(TOKENS, 128, 128 - high, high, TOKENS // 8), 0.1)
    assert never == 0 and longest <= 8


@pytest.mark.parametrize("high", [0, 224], ids=["bottom", "top"])
def test_wait_is_bounded_by_max_age_at_an_eighth(high):
    never, longest = longest_wait(Counts(TOKENS, 32, 224 - high, high, TOKENS // 16), 0.1)
    assert never == 0 and longest <= 16


def test_published_sign_starves_tokens():
    """Negative control: raising starved scores while dropping from the top feeds on itself."""
    never, _ = longest_wait(Counts(TOKENS, 128, 0, 128, 0), -0.1)
    assert never > 50
    fixed, _ = longest_wait(Counts(TOKENS, 128, 0, 128, 0), 0.1)
    assert fixed == 0


@pytest.mark.parametrize("name", ["sd3", "wan", "flux"])
def test_scores_belong_to_the_pixels_of_their_token(name, captured):
    """A prediction that varies in one token only scores there, on a non-square grid."""
    _, program = captured(name, torch.float32)
    graph = program.graphs["denoiser"]
    axes = infer_axes(graph)
    tokens = token_axis(graph, axes)
    builder = Builder(fake_mode_of(graph))
    node = graph.output_nodes()["prediction"]
    prediction = builder.input("prediction", node.meta["val"])
    score = token_scores(builder, prediction, axes.of(node), axes, tokens, "std")
    scorer = builder.finish({"score": score}, graph.dimensions)
    value = torch.zeros(2, *node.meta["val"].shape[1:])
    token = 11
    if name == "flux":
        value[0, token, 0] = 1.0
    elif name == "sd3":  # latent [4, 8, 12], patch 2: 4 x 6 tokens
        value[0, 0, 2 * (token // 6), 2 * (token % 6) + 1] = 1.0
    else:  # latent [4, 2, 8, 12], patch (1, 2, 2): token 11 is in frame 0
        value[0, 1, 0, 2 * (token // 6), 2 * (token % 6)] = 1.0
    found = scorer.run({}, {"prediction": value})["score"]
    assert found.shape == (2, tokens.hint)
    assert found[0].nonzero().flatten().tolist() == [token]
    assert not found[1].any()
    pixels = 1 if name == "flux" else 4
    # One channel of four is 1: unbiased standard deviation 0.5, averaged over the pixels.
    assert float(found[0, token]) == pytest.approx(0.5 / pixels)
