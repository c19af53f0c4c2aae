"""How much the frames of a video attend to one another: the attention map, one number per tile."""

import torch

SCORES_AT_ONCE = 2**24
"""Attention scores in memory at a time, in float32: 64 MiB, and as much for their softmax."""


def frame_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    frames: int,
    tokens_per_frame: int,
    prefix: int = 0,
    suffix: int = 0,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, float]:
    """The attention mass between frames, averaged over batch, heads and the tokens of a frame.

    The rows are S = prefix text + frames * tokens_per_frame video + suffix text; positions are
    already in the query and key. Computed in float32, a block of query rows at a time.

    Args:
        query: [B, N, S, D], any float dtype.
        key: [B, N, S, D].
        frames: F, at least 1.
        tokens_per_frame: P, at least 1.
        prefix: text rows before the video.
        suffix: text rows after it.
        mask: [B or 1, N or 1, 1, S], bool (True: the key may be seen) or added to the scores, the
            same for every query row; each must see some key.
        scale: what the scores are multiplied by; None for 1 / sqrt(D).
    Returns:
        The map [F, F], float32 on the CPU: entry (f, g) is the share of the attention of frame f
        that goes to frame g. And the share, in [0, 1], that goes to text: 1 minus the mean sum of
        a row of the map.
    Raises:
        ValueError: the rows are not as many as frames and text make.
    Source: the tiles of Ding et al. (2025), Efficient-vDiT, arXiv 2502.06155.
    """
    batch, heads, length, width = query.shape
    video = frames * tokens_per_frame
    if frames < 1 or tokens_per_frame < 1 or length != prefix + video + suffix:
        raise ValueError(
            f"frame_attention: found {length} rows in query {list(query.shape)}, expected "
            f"prefix {prefix} + frames {frames} * tokens_per_frame {tokens_per_frame} + "
            f"suffix {suffix}, with at least one frame of one token"
        )
    bias = _bias(mask, batch, heads, length, query.device)
    scale = width**-0.5 if scale is None else scale
    # What each key receives from the queries of each frame, summed over batch and heads.
    received = torch.zeros(frames, length, dtype=torch.float64, device=query.device)
    for sample in range(batch):
        for head in range(heads):
            keys = key[sample, head].float().T
            queries = query[sample, head, prefix : prefix + video].float() * scale
            for frame, rows in enumerate(queries.reshape(frames, tokens_per_frame, width)):
                for block in torch.split(rows, max(1, SCORES_AT_ONCE // length)):
                    scores = torch.addmm(bias[sample, head], block, keys)
                    received[frame] += scores.softmax(-1).sum(0, dtype=torch.float64)
    shares = received.cpu() / (batch * heads * tokens_per_frame)
    before, inside, after = torch.split(shares, [prefix, video, suffix], dim=1)
    tiles = inside.reshape(frames, frames, tokens_per_frame).sum(2)
    return tiles.float(), float(before.sum() + after.sum()) / frames


def _bias(
    mask: torch.Tensor | None, batch: int, heads: int, length: int, device: torch.device
) -> torch.Tensor:
    """[B, N, 1, S] float32, added to the scores; repeats take no memory."""
    bias = torch.zeros(1, 1, 1, length, device=device)
    if mask is not None and mask.dtype == torch.bool:
        bias = bias.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        bias = mask.float()
    return bias.expand(batch, heads, 1, length)
