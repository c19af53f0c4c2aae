"""tile_attention on a GPU: interpreted, compiled without one, and run where there is one."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from optimize.kernels.tile_attention import tile_attention, triton_kernel, triton_tuning
from optimize.kernels.tile_attention.pattern import TilePattern, spread_references
from optimize.kernels.tile_attention.reference import reference
from optimize.kernels.tile_attention.schema import form_of
from optimize.kernels.tile_attention.triton_blocks import TABLE, Blocks, blocks_of, padded
from tests.kernels.interpreting import interpret

SMALL = Blocks(32, 16, 4, 2)
# Text on both sides, frames shorter and longer than a block, whole blocks only, joined references.
PATTERNS = [
    TilePattern(4, 20, (0, 2), 3, 2),
    TilePattern(4, 37, (1,), 0, 7),
    TilePattern(3, 32, (0,), 32, 0),
    TilePattern(5, 7, (1, 2, 4), 0, 0),
]
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def case(pattern, dtype, mask=None, width=24, batch=1, heads=2, device="cpu"):
    """Query, key, value as a projection leaves them, and a key mask of a kind."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    shape = (batch, pattern.length, heads, width)
    x = [draw(*shape).to(device, dtype).transpose(1, 2) for _ in range(3)]
    if mask is None:
        return x, None
    size = (batch, heads if mask == "added" else 1, 1, pattern.length)
    shown = draw(*size) < 0.5
    # One block of keys is hidden whole: no score so far may be the largest one.
    shown[..., :16] = False
    shown[..., pattern.prefix :: pattern.tokens_per_frame] = True
    shown[..., 0] = False
    numbers = shown if mask == "bool" else torch.where(shown, draw(*size), -torch.inf).to(dtype)
    return x, numbers.to(device)


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel in Triton's interpreter, on the CPU, with outputs that start as NaN."""
    names = {tl: ("max", "sum"), triton_kernel: ("_row", "_attend", "_kernel")}
    interpret(monkeypatch, names)
    dot, empty = interpreter.InterpreterBuilder.create_dot, torch.Tensor.new_empty

    def widened(handle):
        # The interpreter keeps bfloat16 as 16-bit integers, and multiplies these.
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def dot_of_numbers(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    def poisoned(self, *size, **options):
        fresh = empty(self, *size, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot_of_numbers)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def assert_near(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=TOLERANCES[expected.dtype])


@pytest.mark.parametrize("mask", [None, "bool", "added"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_interpreted_kernel_equals_the_reference(interpreted, pattern, dtype, mask):
    x, numbers = case(pattern, dtype, mask)
    found = triton_kernel.launch(*x, pattern, numbers, blocks=SMALL)
    assert_near(found, reference(*x, pattern, numbers))


@pytest.mark.parametrize("width", [16, 96])
def test_interpreted_kernel_takes_any_width_and_other_blocks(interpreted, width):
    pattern = TilePattern(3, 50, (1,), 5, 1)
    (query, key, value), _ = case(pattern, torch.float32, width=width, heads=1)
    value = value[..., : width - 8]
    for blocks in (Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 2)):
        found = triton_kernel.launch(query, key, value, pattern, None, 0.2, blocks)
        assert_near(found, reference(query, key, value, pattern, None, 0.2))


def test_interpreted_kernel_takes_strided_inputs_and_empty_batches(interpreted):
    pattern = PATTERNS[0]
    (query, key, value), numbers = case(pattern, torch.float32, "added", batch=2)
    strided = (query.contiguous(), key.mT.contiguous().mT, value.repeat(1, 2, 1, 1)[:, ::2])
    one = numbers[:1, :1].mT.contiguous().mT
    found = triton_kernel.launch(*strided, pattern, one, blocks=SMALL)
    assert_near(found, reference(*strided, pattern, one))
    empty = [item[:0] for item in (query, key, value)]
    assert triton_kernel.launch(*empty, pattern).shape == (0, 2, pattern.length, 24)


def test_interpreted_kernel_gives_zero_where_no_key_is_seen(interpreted):
    pattern = PATTERNS[0]
    x, _ = case(pattern, torch.float32)
    hidden = torch.zeros(1, 1, 1, pattern.length, dtype=torch.bool)
    assert (triton_kernel.launch(*x, pattern, hidden, blocks=SMALL) == 0).all()
    assert (tile_attention(*x, 4, 20, [0, 2], 3, 2, hidden) == 0).all()
    assert (reference(*x, pattern, hidden) == 0).all()


def test_constants_cover_every_key_and_query_once():
    for pattern in (*PATTERNS, TilePattern(24, 90, spread_references(24, 8), 30, 3)):
        found = triton_kernel.constants(pattern, 64, 64, Blocks(32, 32, 4, 2))
        assert _rows(found["QUERY_STEPS"], pattern.global_length) == [
            row for piece in pattern.global_ranges for row in range(*piece)
        ]
        own = len(pattern.others) * pattern.tokens_per_frame
        assert sorted(
            _rows(found["QUERY_STEPS"], pattern.global_length) + _rows(found["FRAME_STEPS"], own)
        ) == list(range(pattern.length))
        rests = [row for piece in found["RESTS"] for row in range(*piece)]
        keys = sorted(_rows(found["KEY_STEPS"], found["FULL_KEYS"]) + rests)
        assert keys == _rows(found["QUERY_STEPS"], pattern.global_length)


def _rows(steps, length):
    return [
        position + [shift for first, shift in steps if first <= position][-1]
        for position in range(length)
    ]


def test_form_says_where_the_kernel_runs():
    assert form_of("cuda", torch.bfloat16, 96) == "triton"
    assert form_of("cuda", torch.bfloat16, 256) == form_of("cuda", torch.float64, 64) == "per_frame"
    assert form_of("cpu", torch.float32, 64) == "per_frame"


def test_every_gpu_has_a_row_of_the_table():
    for capability, row in {80: 80, 86: 120, 89: 120, 90: 90, 100: 100, 103: 100, 121: 120}.items():
        for dtype in TOLERANCES:
            for width in (16, 64, 96, 128):
                expected = TABLE[row, dtype.itemsize, max(64, padded(width))]
                assert blocks_of(capability, dtype, width) == expected


def test_refuses_gpus_without_a_row():
    with pytest.raises(ValueError, match=r"capability 7.5, expected at least 8.0; call"):
        blocks_of(75, torch.float16, 64)


@pytest.mark.parametrize("mask", [None, "bool"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", triton_tuning.MULTIPROCESSORS)
def test_compiled_kernel_spills_nothing_and_fits(capability, dtype, width, mask):
    used = triton_tuning.resources_of(
        triton_tuning.compile_for(capability, dtype, width, mask), capability
    )
    print(f"sm_{capability} {dtype} D{width} mask {mask}: {used}")
    assert used.spill_bytes == 0
    assert used.programs >= 1 and 0 < used.occupancy <= 1


@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_kernel_uses_tensor_cores_for_sixteen_bits_only(capability):
    code = triton_tuning.compile_for(capability, torch.bfloat16, 64).asm["ptx"]
    assert ("wgmma" if capability == 90 else "mma.sync") in code
    exact = triton_tuning.compile_for(capability, torch.float32, 64).asm["ptx"]
    assert "mma" not in exact


def test_programs_at_once_is_limited_by_threads_registers_or_shared_memory():
    assert triton_tuning.programs_at_once(80, 32, 0, 4) == 16
    assert triton_tuning.programs_at_once(80, 128, 0, 4) == 4
    assert triton_tuning.programs_at_once(80, 33, 0, 4) == 65536 // (40 * 32 * 4)
    assert triton_tuning.programs_at_once(120, 32, 49 * 1024, 4) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [None, "bool", "added"])
@pytest.mark.parametrize("width", [64, 96, 128])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_op_on_a_gpu_equals_the_reference(dtype, width, mask):
    for pattern in (*PATTERNS, TilePattern(8, 300, (0, 4), 77, 0)):
        x, numbers = case(pattern, dtype, mask, width, batch=2, device="cuda")
        p = pattern
        given = (p.frames, p.tokens_per_frame, list(p.references), p.prefix, p.suffix, numbers)
        assert_near(tile_attention(*x, *given), reference(*x, pattern, numbers))


@pytest.mark.gpu
def test_dense_patterns_on_a_gpu_have_the_bits_of_dense_attention():
    pattern = TilePattern(4, 300, (0, 1, 3))
    x, _ = case(pattern, torch.bfloat16, width=64, device="cuda")
    expected = scaled_dot_product_attention(*x)
    assert torch.equal(tile_attention(*x, 4, 300, [0, 1, 3]), expected)
