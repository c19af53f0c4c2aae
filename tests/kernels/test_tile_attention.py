"""tile_attention: its geometry, its numbers against a full mask, and its behaviour as an op."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from optimize.capture.from_module import trace
from optimize.ir.axis_rules import infer_axes, mixed_dimensions
from optimize.kernels.tile_attention import tile_attention
from optimize.kernels.tile_attention.pattern import (
    TilePattern,
    kept_tiles,
    spread_references,
    tile_density,
)
from optimize.kernels.tile_attention.reference import allowed_pairs, reference
from optimize.measure.cost import graph_flops

OP = torch.ops.optimize.tile_attention.default
# Frames, references, block sparsity in percent: blocks of 128, 3600 tokens per frame.
PUBLISHED = [
    (8, 4, 17.60), (8, 3, 29.88), (8, 2, 45.47), (8, 1, 64.38),
    (24, 12, 21.51), (24, 8, 40.30), (24, 6, 51.88), (24, 4, 64.98), (24, 3, 72.05),
]  # fmt: skip


def tensors(pattern, batch=2, heads=3, width=8, value_width=None, dtype=torch.float32, seed=0):
    """Query, key and value, as a projection leaves them: transposed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        shape = (batch, pattern.length, heads, size)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    sizes = (width, width, width if value_width is None else value_width)
    return [draw(size).transpose(1, 2) for size in sizes]


def call(pattern, query, key, value, mask=None, scale=None):
    p = pattern
    return tile_attention(
        query, key, value, p.frames, p.tokens_per_frame, list(p.references), p.prefix, p.suffix,
        mask, scale,
    )  # fmt: skip


def key_mask(pattern, kind, batch=2, heads=1, dtype=torch.float32):
    """Hides some of the text, or some of everything when there is none."""
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand((batch, heads, 1, pattern.length), generator=generator) < 0.6
    shown[..., pattern.prefix :: pattern.tokens_per_frame] = True
    if kind == "bool":
        return shown
    return torch.where(shown, torch.randn(shown.shape, generator=generator), -torch.inf).to(dtype)


@pytest.mark.parametrize(("frames", "count", "percent"), PUBLISHED)
def test_block_sparsity_is_the_published_one(frames, count, percent):
    pattern = TilePattern(frames, 3600, spread_references(frames, count))
    assert 100 * pattern.block_sparsity(128) == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize("frames", range(1, 13))
def test_density_is_the_mean_of_the_mask(frames):
    for count in range(1, frames + 1):
        pattern = TilePattern(frames, 3, spread_references(frames, count))
        mean = allowed_pairs(pattern).double().mean().item()
        assert mean == pytest.approx(tile_density(frames, count), abs=1e-15)
        assert mean == pytest.approx(pattern.density, abs=1e-15)
        assert kept_tiles(frames, count) * 9 == pattern.kept_pairs
        assert pattern.is_dense == (mean == 1)


patterns = st.builds(
    lambda frames, tokens, seed, prefix, suffix: TilePattern(
        frames,
        tokens,
        tuple(sorted(seed.sample(range(frames), seed.randint(1, frames)))),
        prefix,
        suffix,
    ),
    st.integers(1, 6),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
    st.integers(0, 5),
    st.integers(0, 5),
)


@settings(max_examples=60, deadline=None)
@given(patterns, st.integers(1, 20))
def test_kept_pairs_and_blocks_are_those_of_the_mask(pattern, block):
    allowed = allowed_pairs(pattern)
    assert pattern.kept_pairs == allowed.sum()
    rows = [
        allowed[i : i + block, j : j + block].any()
        for i in range(0, pattern.length, block)
        for j in range(0, pattern.length, block)
    ]
    assert pattern.kept_blocks(block) == sum(rows)


@settings(max_examples=60, deadline=None)
@given(patterns, st.data())
def test_pairs_of_some_rows_are_those_rows_of_all_pairs(pattern, data):
    rows = torch.tensor(data.draw(st.lists(st.integers(0, pattern.length - 1), min_size=1)))
    expected = allowed_pairs(pattern)[rows]
    assert torch.equal(allowed_pairs(pattern, rows=rows), expected)


@settings(max_examples=60, deadline=None)
@given(patterns, st.sampled_from([None, "bool", "added"]), st.sampled_from([None, 0.3]))
def test_equals_masked_dense_attention(pattern, kind, scale):
    x = tensors(pattern, dtype=torch.float64)
    mask = key_mask(pattern, kind, dtype=torch.float64) if kind else None
    expected = reference(*x, pattern, mask, scale)
    torch.testing.assert_close(call(pattern, *x, mask, scale), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
    ids=str,
)
def test_equals_the_reference_in_every_dtype(dtype, tolerance):
    pattern = TilePattern(5, 7, (0, 3), 4, 3)
    x = tensors(pattern, width=16, dtype=dtype)
    for mask in (None, key_mask(pattern, "bool"), key_mask(pattern, "added", dtype=dtype)):
        found = call(pattern, *x, mask)
        torch.testing.assert_close(found, reference(*x, pattern, mask), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [None, "bool", "added"])
@pytest.mark.parametrize("count", [4, 5])
def test_dense_patterns_have_the_bits_of_dense_attention(count, kind):
    pattern = TilePattern(5, 13, spread_references(5, count), 3, 2)
    x = tensors(pattern)
    mask = key_mask(pattern, kind) if kind else None
    expected = scaled_dot_product_attention(*x, attn_mask=mask)
    assert torch.equal(call(pattern, *x, mask), expected)


def test_text_rows_equal_dense_text_rows():
    pattern = TilePattern(6, 5, (0, 3), 4, 2)
    x = tensors(pattern, dtype=torch.float64)
    found, dense = call(pattern, *x), scaled_dot_product_attention(*x)
    text = [*range(4), *range(34, 36)]
    torch.testing.assert_close(found[:, :, text], dense[:, :, text], rtol=0, atol=1e-14)
    assert (found - dense)[:, :, 9:14].abs().max() > 1e-3


def test_heads_are_independent():
    pattern = TilePattern(5, 6, (1, 3), 2, 0)
    x = tensors(pattern, heads=6)
    whole = call(pattern, *x)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(call(pattern, *(item[:, order] for item in x)), whole[:, order])
    halves = [call(pattern, *(item[:, part] for item in x)) for part in (slice(3), slice(3, 6))]
    assert torch.equal(torch.cat(halves, 1), whole)


def test_value_may_be_wider_and_keys_strided():
    pattern = TilePattern(4, 5, (0, 2), 1, 1)
    query, key, value = tensors(pattern, value_width=12, dtype=torch.float64)
    strided = key.mT.contiguous().mT
    found = call(pattern, query, strided, value)
    expected = reference(query, key, value, pattern)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert found.transpose(1, 2).is_contiguous()


def memory_events(run):
    """Bytes taken, or given back if negative, one by one while `run` runs; its result is kept."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    del kept
    return sizes


@pytest.mark.parametrize("count", [1, 4])
def test_holds_no_scores_of_all_pairs(count):
    pattern = TilePattern(8, 128, spread_references(8, count), 7, 0)
    x = tensors(pattern, batch=1, heads=4, width=32)
    inputs = sum(item.nbytes for item in x)
    pairs = pattern.length**2
    call(pattern, *x)
    sizes = memory_events(lambda: call(pattern, *x))
    # The result is the largest: there is no mask of all pairs, and no head's scores.
    assert x[0].nbytes <= max(sizes) < pairs
    assert max(itertools.accumulate(sizes)) < 2 * inputs
    # Control: the reference does hold them.
    control = memory_events(lambda: reference(*x, pattern))
    assert max(control) >= 4 * 4 * pairs and max(itertools.accumulate(control)) > 2 * inputs


def test_pairs_of_a_few_rows_take_no_memory_for_all():
    pattern = TilePattern(8, 128, (0, 4), 7, 0)
    rows = torch.arange(0, pattern.length, 100)
    sizes = memory_events(lambda: allowed_pairs(pattern, rows=rows))
    assert max(sizes) < pattern.length**2 // 50
    assert max(memory_events(lambda: allowed_pairs(pattern))) >= pattern.length**2


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(count, masked):
    pattern = TilePattern(4, 5, spread_references(4, count), 2, 1)
    mask = key_mask(pattern, "bool") if masked else None
    arguments = (*tensors(pattern), 4, 5, list(pattern.references), 2, 1, mask)
    torch.library.opcheck(tile_attention, arguments)


class _Model(torch.nn.Module):
    def forward(self, query, key, value, mask):
        return tile_attention(query * 1.0, key, value, 4, 5, [0, 2], 2, 1, mask, 0.5)


def graph():
    pattern = TilePattern(4, 5, (0, 2), 2, 1)
    x = dict(zip(("query", "key", "value"), tensors(pattern), strict=True))
    mask = key_mask(pattern, "bool")
    return trace(_Model(), {**x, "mask": mask}, ("rows",), 2, True).graph


def test_traces_with_any_batch_and_costs_its_kept_pairs():
    traced = graph()
    (node,) = [node for node in traced.graph.nodes if node.target is OP]
    assert isinstance(node.meta["val"].shape[0], torch.SymInt)
    pattern = TilePattern(4, 5, (0, 2), 2, 1)
    elementwise = 2 * 3 * pattern.length * 8
    assert graph_flops(traced) == elementwise + 2 * 2 * 3 * pattern.kept_pairs * (8 + 8)


def test_axes_are_those_of_attention_and_rows_are_mixed():
    traced = graph()
    axes = infer_axes(traced)
    (node,) = [node for node in traced.graph.nodes if node.target is OP]
    query, key, value, mask = (node.args[i] for i in (0, 1, 2, 8))
    result = axes.of(node)
    assert result[:3] == axes.of(query)[:3] and result[3] is axes.of(value)[3]
    assert axes.of(key)[2] is axes.of(value)[2] is axes.of(mask)[3]
    assert axes.of(query)[3] is axes.of(key)[3]
    assert axes.of(query)[0] is axes.of(mask)[0]
    assert [mixed_dimensions(node, item) for item in (query, key, value)] == [{2}] * 3
    assert mixed_dimensions(node, mask) == {3}


GOOD = {
    "query": (2, 3, 23, 8), "key": (2, 3, 23, 8), "value": (2, 3, 23, 8), "frames": 4,
    "tokens_per_frame": 5, "references": [0, 2], "prefix": 2, "suffix": 1, "mask": (2, 1, 1, 23),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": (3, 23, 8)}, "query of shape .3, 23, 8. .* expected .B, N, S, D."),
        ({"query": (2, 3, 24, 8)}, "found 24 rows in query .* expected prefix 2 .* = 23"),
        ({"tokens_per_frame": 6}, "found 23 rows in query .* = 27"),
        ({"key": (2, 3, 22, 8)}, "found key of shape .* expected .2, 3, 23, 8."),
        ({"key": (2, 1, 23, 8)}, "found key of shape .* expected .2, 3, 23, 8."),
        ({"value": (2, 23, 8)}, "found value of shape .* expected .2, 3, 23, 'Dv'."),
        ({"references": []}, "found references .., expected at least one frame of .0, 4."),
        ({"references": [2, 0]}, "found references .2, 0., expected .* ascending"),
        ({"references": [1, 1]}, "found references .1, 1., expected .* without repeats"),
        ({"references": [0, 4]}, "found references .0, 4., expected .* of .0, 4."),
        ({"references": [-1]}, "found references .-1., expected .* of .0, 4."),
        ({"frames": 0}, "found frames 0, .* expected at least 1 frame"),
        ({"suffix": -1}, "suffix -1, expected .* no negative"),
        ({"mask": (2, 1, 23, 23)}, "found mask .* the same for every query row"),
        ({"mask": (2, 2, 1, 23)}, "found mask .* expected .2 or 1, 3 or 1, 1, 23."),
        ({"mask": (23,)}, "found mask of shape .23."),
    ],
)
def test_refuses_wrong_arguments(changes, message):
    given = {
        name: torch.zeros(item) if isinstance(item, tuple) else item
        for name, item in (GOOD | changes).items()
    }
    with pytest.raises(ValueError, match=message):
        tile_attention(**given)


@pytest.mark.parametrize("name", ["query", "key", "value", "mask"])
def test_refuses_wrong_dtypes(name):
    given = {
        key: torch.zeros(item) if isinstance(item, tuple) else item for key, item in GOOD.items()
    }
    given[name] = given[name].long() if name == "query" else given[name].double()
    with pytest.raises(ValueError, match=f"found {name} of .*dtype torch.(int64|float64), expect"):
        tile_attention(**given)


@pytest.mark.parametrize("count", [0, 9, -1])
def test_spread_references_refuses_wrong_counts(count):
    with pytest.raises(ValueError, match=rf"found count {count}, expected one of \[1, 8\]"):
        spread_references(8, count)
