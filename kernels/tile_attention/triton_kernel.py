"""`tile_attention` for a GPU: one pass over the keys that a block of queries sees."""

# The kernel is Triton, whose functions have no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from optimize.kernels.tile_attention.pattern import Range, TilePattern
from optimize.kernels.tile_attention.triton_blocks import Blocks, blocks_of, padded


@triton.jit
def _row(position, STEPS: tl.constexpr):
    """The row at a position of joined ranges; STEPS are pairs (first position, row - position)."""
    row = position + STEPS[0][1]
    for index in tl.static_range(1, len(STEPS)):
        row = tl.where(position >= STEPS[index][0], position + STEPS[index][1], row)
    return row


@triton.jit
def _attend(
    state,
    queries,
    key_block,
    value_block,
    mask_block,
    start,
    stop,
    key_row,
    value_row,
    scale,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """Takes in the keys from `start`, up to `stop` when CHECKED: the online softmax, base 2.

    state is (sum of weighted values [M, Dv], sum of weights [M], largest score [M]).
    """
    total, weight, peak = state
    DIMS: tl.constexpr = key_block.shape[0]
    KEYS: tl.constexpr = key_block.shape[1]
    VALUE_DIMS: tl.constexpr = value_block.shape[1]
    place = tl.arange(0, KEYS)
    # Every block is full and every column real unless a flag says otherwise.
    inside = start + place < stop
    key_valid = tl.full((DIMS, KEYS), True, tl.int1)
    value_valid = tl.full((KEYS, VALUE_DIMS), True, tl.int1)
    if CHECKED:
        key_valid = key_valid & inside[None, :]
        value_valid = value_valid & inside[:, None]
    if WIDTH != DIMS:
        key_valid = key_valid & (tl.arange(0, DIMS) < WIDTH)[:, None]
    if VALUE_WIDTH != VALUE_DIMS:
        value_valid = value_valid & (tl.arange(0, VALUE_DIMS) < VALUE_WIDTH)[None, :]
    offset = start.to(tl.int64)
    keys = tl.load(key_block + offset * key_row, key_valid, other=0.0)
    scores = tl.dot(queries, keys, input_precision="ieee") * scale
    if mask_block is not None:
        added = tl.load(mask_block + offset, inside, other=0)
        if mask_block.dtype.element_ty == tl.int8:
            scores = tl.where((added != 0)[None, :], scores, float("-inf"))
        else:
            scores += added.to(tl.float32)[None, :] * 1.4426950408889634
    if CHECKED:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    highest = tl.maximum(peak, tl.max(scores, 1))
    # Rows that have seen no key yet: -inf - -inf would be NaN.
    base = highest if mask_block is None else tl.where(highest == float("-inf"), 0.0, highest)
    fresh = tl.exp2(scores - base[:, None])
    kept = tl.exp2(peak - base)
    weight = weight * kept + tl.sum(fresh, 1)
    values = tl.load(value_block + offset * value_row, value_valid, other=0.0)
    total = tl.dot(fresh.to(values.dtype), values, total * kept[:, None], input_precision="ieee")
    return total, weight, highest


@triton.jit
def _kernel(
    query,
    key,
    value,
    mask,
    result,
    scale,
    heads,
    query_strides,
    key_strides,
    value_strides,
    mask_strides,
    result_strides,
    LENGTH: tl.constexpr,
    TOKENS: tl.constexpr,
    GLOBAL_LENGTH: tl.constexpr,
    QUERY_STEPS: tl.constexpr,
    FRAME_STEPS: tl.constexpr,
    KEY_STEPS: tl.constexpr,
    FULL_KEYS: tl.constexpr,
    RESTS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A block of query rows of one head: of the global rows, which come first, or of a frame.

    Strides are those of batch, head and row; neighbours along the width, and along the keys of the
    mask, are neighbours in memory. `constants` explains the rest.
    """
    GLOBAL_TILES: tl.constexpr = (GLOBAL_LENGTH + QUERIES - 1) // QUERIES
    FRAME_TILES: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES
    tile = tl.program_id(0)
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    is_global = tile < GLOBAL_TILES

    joined = tile * QUERIES + tl.arange(0, QUERIES)
    local = tl.maximum(tile - GLOBAL_TILES, 0)
    own = _row(local // FRAME_TILES * TOKENS, FRAME_STEPS)
    within = local % FRAME_TILES * QUERIES + tl.arange(0, QUERIES)
    row = tl.where(is_global, _row(joined, QUERY_STEPS), own + within).to(tl.int64)
    valid = tl.where(is_global, joined < GLOBAL_LENGTH, within < TOKENS)

    dims = tl.arange(0, DIMS)
    value_dims = tl.arange(0, VALUE_DIMS)
    place = tl.arange(0, KEYS)
    query += sample * query_strides[0] + head * query_strides[1]
    key += sample * key_strides[0] + head * key_strides[1]
    value += sample * value_strides[0] + head * value_strides[1]
    key_block = key + dims[:, None] + place[None, :] * key_strides[2]
    value_block = value + place[:, None] * value_strides[2] + value_dims[None, :]
    mask_block = None
    if mask is not None:
        mask_block = mask + sample * mask_strides[0] + head * mask_strides[1] + place
    queries = tl.load(
        query + row[:, None] * query_strides[2] + dims[None, :],
        valid[:, None] & (dims < WIDTH)[None, :],
        other=0.0,
    )

    total = tl.full((QUERIES, VALUE_DIMS), 0.0, tl.float32)
    weight = tl.full((QUERIES,), 0.0, tl.float32)
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    full = tl.where(is_global, LENGTH // KEYS, FULL_KEYS // KEYS + TOKENS // KEYS)
    for index in range(full):
        at = index * KEYS
        seen = tl.where(at < FULL_KEYS, _row(at, KEY_STEPS), own + at - FULL_KEYS)
        start = tl.where(is_global, at, seen)
        total, weight, peak = _attend(
            (total, weight, peak), queries, key_block, value_block, mask_block, start, LENGTH,
            key_strides[2], value_strides[2], scale, WIDTH, VALUE_WIDTH, False,
        )  # fmt: skip
    rests = tl.where(is_global, LENGTH % KEYS != 0, len(RESTS) + (TOKENS % KEYS != 0))
    for index in range(rests):
        start, stop = own + TOKENS // KEYS * KEYS, own + TOKENS
        for piece in tl.static_range(len(RESTS)):
            start = tl.where(index == piece, RESTS[piece][0], start)
            stop = tl.where(index == piece, RESTS[piece][1], stop)
        start = tl.where(is_global, LENGTH // KEYS * KEYS, start)
        stop = tl.where(is_global, LENGTH, stop)
        total, weight, peak = _attend(
            (total, weight, peak), queries, key_block, value_block, mask_block, start, stop,
            key_strides[2], value_strides[2], scale, WIDTH, VALUE_WIDTH, True,
        )  # fmt: skip

    # A row that sees no key at all is zero, as in `scaled_dot_product_attention`.
    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    result += sample * result_strides[0] + head * result_strides[1]
    tl.store(
        result + row[:, None] * result_strides[2] + value_dims[None, :],
        total.to(result.dtype.element_ty),
        valid[:, None] & (value_dims < VALUE_WIDTH)[None, :],
    )


def constants(pattern: TilePattern, width: int, value_width: int, blocks: Blocks) -> dict[str, Any]:
    """What the kernel is compiled for.

    QUERY_STEPS and FRAME_STEPS give the row of a position among the global rows and among the other
    frames. The ranges of global keys are cut into full blocks, which KEY_STEPS and FULL_KEYS count
    through, and RESTS of (first row, end) that are shorter.
    """
    ranges = pattern.global_ranges
    cuts = [stop - (stop - start) % blocks.keys for start, stop in ranges]
    full = [(start, cut) for (start, _), cut in zip(ranges, cuts, strict=True) if start < cut]
    rests = [(cut, stop) for (_, stop), cut in zip(ranges, cuts, strict=True) if cut < stop]
    return {
        "LENGTH": pattern.length,
        "TOKENS": pattern.tokens_per_frame,
        "GLOBAL_LENGTH": pattern.global_length,
        "QUERY_STEPS": _steps(ranges),
        "FRAME_STEPS": _steps(pattern.other_ranges),
        "KEY_STEPS": _steps(full),
        "FULL_KEYS": sum(cut - start for start, cut in full),
        "RESTS": tuple(rests),
        "WIDTH": width,
        "VALUE_WIDTH": value_width,
        "DIMS": padded(width),
        "VALUE_DIMS": padded(value_width),
        "QUERIES": blocks.queries,
        "KEYS": blocks.keys,
    }


def programs(pattern: TilePattern, blocks: Blocks) -> int:
    """How many blocks of query rows each head has."""
    per_frame = -(-pattern.tokens_per_frame // blocks.queries)
    return -(-pattern.global_length // blocks.queries) + len(pattern.others) * per_frame


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: TilePattern,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Runs the kernel; a tensor strided in its last dimension is copied first.

    Args:
        query: [B, N, S, D], float16, bfloat16 or float32, D at most 128; key and value alike.
        blocks: other block sizes than those of the table.
    """
    batch, heads, length, width = query.shape
    value_width = value.shape[3]
    result = query.new_empty(batch, length, heads, value_width).transpose(1, 2)
    if not result.numel():
        return result
    if blocks is None:
        major, minor = torch.cuda.get_device_capability(query.device)
        blocks = blocks_of(10 * major + minor, query.dtype, max(width, value_width))
    query, key, value = (
        item if item.stride(3) == 1 else item.contiguous() for item in (query, key, value)
    )
    if mask is not None:
        mask = (mask if mask.stride(3) == 1 else mask.contiguous()).expand(batch, heads, 1, length)
        mask = mask.view(torch.int8) if mask.dtype == torch.bool else mask
    scale = 1 / math.sqrt(width) if scale is None else scale
    _kernel[(programs(pattern, blocks), batch * heads)](
        query,
        key,
        value,
        mask,
        result,
        scale * math.log2(math.e),
        heads,
        query.stride()[:3],
        key.stride()[:3],
        value.stride()[:3],
        None if mask is None else mask.stride()[:2],
        result.stride()[:3],
        **constants(pattern, width, value_width, blocks),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return result


def _steps(ranges: Sequence[Range]) -> tuple[tuple[int, int], ...]:
    """Where each range begins among the joined ones, and what to add there to get the row."""
    steps, position = [], 0
    for start, stop in ranges:
        steps.append((position, start - position))
        position += stop - start
    return tuple(steps) or ((0, 0),)
