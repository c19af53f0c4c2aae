"""Scores of image tokens and the choice of those that are kept: the published figures."""

import pytest
import torch

from optimize.passes.visual_score import Amount, Rows, image_attention, kept_rows, kept_tokens


def _rows(count, *, offset=1, text=6, batch=2, own=None):
    used = torch.full((batch,), offset + count + text)
    own = torch.full((batch,), count) if own is None else torch.tensor(own)
    return Rows(offset, count, used, own)


def _kept(scores, amount, **options):
    return kept_tokens(scores, _rows(scores.shape[1], batch=len(scores), **options), amount)


def test_official_counts_for_729_tokens():
    """|A| = 218 and |U| = 81, so |I1| lies between 218 and 299; its expectation is 274.8."""
    torch.manual_seed(0)
    scores = torch.rand(400, 729)
    counts = _kept(scores, Amount(299, 218, (27, 3))).sum(1)
    assert counts.min() >= 218
    assert counts.max() <= 299
    assert counts.double().mean() == pytest.approx(274.8, abs=0.6)


def test_second_stage_keeps_24_of_274():
    torch.manual_seed(0)
    kept = _kept(torch.rand(2, 299), Amount(26, 0.3**2), own=[274, 218])
    assert kept.sum(1).tolist() == [24, 19]
    assert pytest.approx(0.033, abs=5e-4) == 24 / 729


def test_static_keeps_the_grid_and_the_best_others():
    torch.manual_seed(0)
    scores = torch.rand(3, 729)
    kept = _kept(scores, Amount(275, 218, (27, 3), exact=True))
    assert kept.sum(1).tolist() == [275] * 3
    grid = kept.view(3, 27, 27)[:, ::3, ::3]
    assert grid.all() and grid[0].numel() == 81
    others = scores.clone().view(3, 27, 27)
    others[:, ::3, ::3] = -1
    best = others.view(3, -1).topk(194)[1]
    assert kept.gather(1, best).all()


def test_padding_of_an_earlier_stage_is_never_kept():
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.9, 0.9]]).expand(2, 5)
    kept = _kept(scores, Amount(2, 0.5), own=[3, 5])
    assert kept.tolist() == [[False, False, True, False, False], [False, False, False, True, True]]


def test_at_least_one_token_is_kept():
    kept = _kept(torch.rand(2, 5), Amount(1, 0.09), own=[5, 3])
    assert kept.sum(1).tolist() == [1, 1]


def test_rows_before_the_image_kept_tokens_then_text_then_padding():
    kept = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
    rows = Rows(2, 5, torch.tensor([10, 9]), torch.tensor([5, 4]))
    index, chosen, count = kept_rows(kept, rows, Amount(3, 3), 10)
    assert count.tolist() == [3, 1]
    assert chosen.tolist() == [[0, 2, 3], [3, -1, -1]]
    assert index[0].tolist() == [0, 1, 2, 4, 5, 7, 8, 9]
    # Its image rows are 2 to 5, its text begins at 6; the last rows are padding.
    assert index[1, :7].tolist() == [0, 1, 5, 6, 7, 8, 9]


def _rotated(rows, positions, base=10000.0):
    half = rows.shape[-1] // 2
    angles = positions[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = (torch.cat([item, item], -1) for item in (angles.cos(), angles.sin()))
    return rows * cos + torch.cat([-rows[..., half:], rows[..., :half]], -1) * sin


def test_rotary_positions_make_the_bottom_of_the_picture_win():
    """q and k around a direction three times their spread: mean place of the kept quarter."""
    torch.manual_seed(0)
    width, tokens, trials = 128, 729, 200
    means = {True: [], False: []}
    for _ in range(trials):
        direction = 3 * torch.randn(width)
        query = torch.randn(1, 1, tokens + 2, width) + direction
        key = torch.randn(1, 1, tokens + 2, width) + direction
        rows = _rows(tokens, text=1, batch=1)
        for rotary in (True, False):
            q, k = query, key
            if rotary:
                positions = torch.arange(tokens + 2.0)
                q, k = _rotated(query, positions), _rotated(key, positions)
            scores = image_attention(q, k, rows, None, image_only=True)
            places = scores[0].topk(tokens // 4)[1].double() / (tokens - 1)
            means[rotary].append(float(places.mean()))
    assert sum(means[True]) / trials == pytest.approx(0.783, abs=0.01)
    assert sum(means[False]) / trials == pytest.approx(0.499, abs=0.005)


def test_score_is_the_attention_of_the_last_real_row():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 12, 8).double(), torch.randn(2, 2, 12, 8).double()
    rows = Rows(1, 6, torch.tensor([12, 9]), torch.tensor([6, 4]))
    whole = image_attention(query, key, rows, None, image_only=False)
    image = image_attention(query, key, rows, 0.5, image_only=True)
    for sample, (used, own) in enumerate([(12, 6), (9, 4)]):
        keys = key[sample].repeat_interleave(2, 0)
        scores = torch.einsum("nd,nsd->ns", query[sample, :, used - 1], keys)
        expected = (scores[:, :used] / 8**0.5).softmax(-1).mean(0)[1:7]
        torch.testing.assert_close(whole[sample, : len(expected)], expected)
        expected = (scores[:, 1 : 1 + own] * 0.5).softmax(-1).mean(0)
        torch.testing.assert_close(image[sample, :own], expected)
        assert (image[sample, own:] == 0).all()


def test_permuting_heads_leaves_the_scores():
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 12, 8), torch.randn(1, 4, 12, 8)
    order = torch.tensor([2, 0, 3, 1])
    rows = _rows(6, text=5, batch=1)
    torch.testing.assert_close(
        image_attention(query, key, rows, None, True),
        image_attention(query[:, order], key[:, order], rows, None, True),
    )
