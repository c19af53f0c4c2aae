"""The attention mass between frames equals that of the whole map, which is never made."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optimize.measure import frame_attention as module
from optimize.measure.frame_attention import frame_attention

FRAMES, TOKENS = 3, 5


def example(prefix: int, suffix: int, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    length = prefix + FRAMES * TOKENS + suffix
    return torch.randn(2, 2, 4, length, 8, dtype=dtype)


def whole_map(query, key, prefix, suffix, bias, scale):
    """[F, F] and the text share, from all S x S weights in float64."""
    weights = (query.double() @ key.double().mT * scale + bias).softmax(-1)
    video = weights[:, :, prefix : weights.shape[2] - suffix]
    tiles = torch.zeros(FRAMES, FRAMES, dtype=torch.float64)
    for f in range(FRAMES):
        for g in range(FRAMES):
            start = prefix + g * TOKENS
            tile = video[:, :, f * TOKENS : (f + 1) * TOKENS, start : start + TOKENS]
            tiles[f, g] = tile.sum(-1).mean()
    text = video[..., :prefix].sum(-1) + video[..., weights.shape[3] - suffix :].sum(-1)
    return tiles, float(text.mean())


@pytest.mark.parametrize("at_once", [1, 40, 2**24])
@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (4, 0), (0, 3), (2, 1)])
def test_equals_the_sums_of_the_whole_map(prefix, suffix, at_once, monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    query, key = example(prefix, suffix)
    expected, text = whole_map(query, key, prefix, suffix, 0.0, 8**-0.5)
    found, share = frame_attention(
        query, key, frames=FRAMES, tokens_per_frame=TOKENS, prefix=prefix, suffix=suffix
    )
    assert found.dtype == torch.float32 and found.shape == (FRAMES, FRAMES)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert share == pytest.approx(text, abs=1e-6)
    assert float(found.sum()) / FRAMES == pytest.approx(1 - share, abs=1e-6)


@pytest.mark.parametrize("kind", ["bool", "added"])
def test_masked_keys_receive_nothing(kind):
    query, key = example(0, 4)
    seen = torch.ones(2, 1, 1, 19, dtype=torch.bool)
    seen[1, ..., 16:] = False
    added = torch.zeros(2, 1, 1, 19).masked_fill(~seen, -math.inf)
    found, share = frame_attention(
        query,
        key,
        frames=FRAMES,
        tokens_per_frame=TOKENS,
        suffix=4,
        mask=seen if kind == "bool" else added,
        scale=0.7,
    )
    expected, text = whole_map(query, key, 0, 4, added, 0.7)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert share == pytest.approx(text, abs=1e-6)


def test_half_precision_is_computed_in_float32():
    query, key = example(0, 0, torch.bfloat16)
    found, _ = frame_attention(query, key, frames=FRAMES, tokens_per_frame=TOKENS)
    expected, _ = whole_map(query, key, 0, 0, 0.0, 8**-0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any op makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [item.numel() for item in tree_leaves(result) if isinstance(item, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_never_holds_all_pairs(monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2**12)
    query, key = torch.randn(2, 1, 2, 512, 4)
    with Largest() as largest:
        frame_attention(query, key, frames=4, tokens_per_frame=128)
    assert 2**12 <= largest.elements < 512**2 / 16


def test_refuses_another_number_of_rows():
    query, key = example(1, 0)
    with pytest.raises(ValueError, match=r"found 16 rows in query \[2, 4, 16, 8\], expected pref"):
        frame_attention(query, key, frames=FRAMES, tokens_per_frame=TOKENS)
