"""solver_step on a GPU: interpreted, compiled ahead of time without one, and run where there is."""

import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from triton.runtime.interpreter import InterpretedFunction

from optimize.kernels.solver_step import solver_step, triton_kernel
from optimize.kernels.solver_step.reference import reference
from optimize.kernels.solver_step.triton_call import compile_call
from optimize.kernels.triton_compile import ARCHITECTURES, usage_of

# Pattern, kept tensors, noise, guidance: Euler, a two-step solver, a three-step one with noise.
STEPS = [
    ("1x", 0, False, False),
    ("xxx,xx0", 1, False, True),
    ("xxxxx,xx000,00100", 2, True, True),
    ("0xx1", 1, True, False),
]
SHAPES = [(1, 1), (1, 63), (1, 64), (5, 13), (1, 1000), (2, 4, 16, 16)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float32),
]


def case(shape, step, dtype, output, device="cpu"):
    """The arguments of one call; columns that are left out hold NaN."""
    pattern, kept, noise, guided = step
    generator = torch.Generator().manual_seed(0)

    def draw(size, kind=dtype, column=None):
        numbers = torch.randn(size, dtype=torch.float64, generator=generator)
        if column is not None and all(row[column] == "0" for row in pattern.split(",")):
            numbers.fill_(float("nan"))
        return numbers.to(kind).to(device)

    columns = 2 + kept + noise
    return {
        "latent": draw(shape, column=0),
        "output": draw((shape[0] * (2 if guided else 1), *shape[1:]), output),
        "kept": [draw(shape, column=2 + age) for age in range(kept)],
        "coefficients": draw((len(pattern.split(",")), columns)),
        "pattern": pattern,
        "noise": draw(shape, column=columns - 1) if noise else None,
        "guidance_scale": draw(()) if guided else None,
    }


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0)


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel in Triton's interpreter, on the CPU."""
    function = InterpretedFunction(triton_kernel._kernel.fn)
    monkeypatch.setattr(triton_kernel, "_kernel", function)


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_interpreted_kernel_gives_the_bits_of_the_reference(interpreted, step, dtypes):
    for shape in SHAPES:
        x = case(shape, step, *dtypes)
        assert_same_bits(triton_kernel.launch(**x), reference(**x))


def test_interpreted_kernel_takes_strided_inputs_and_empty_batches(interpreted):
    x = case((2, 3, 5), STEPS[2], torch.float32, torch.bfloat16)
    other = dict(x, latent=x["latent"].mT.contiguous().mT, output=x["output"].mT.contiguous().mT)
    other |= {"coefficients": x["coefficients"].T.contiguous().T}
    assert not other["latent"].is_contiguous() and not other["coefficients"].is_contiguous()
    assert_same_bits(triton_kernel.launch(**other), reference(**x))
    empty = case((0, 3), STEPS[0], torch.float32, torch.float32)
    assert [tuple(item.shape) for item in triton_kernel.launch(**empty)] == [(0, 3)]


def compiled(step, dtype, output, architecture):
    """The kernel for a GPU that need not be here, with all pointers aligned to 16 bytes."""
    arguments = case((2, 4, 16, 16), step, dtype, output, "meta")
    return compile_call(architecture, **arguments)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_compiled_kernel_spills_nothing_and_needs_no_shared_memory(step, architecture):
    for dtype, output in DTYPES:
        used = usage_of(compiled(step, dtype, output, architecture))
        print(f"sm_{architecture} {step[0]} {dtype} {output}: {used}")
        assert used.spill_bytes == 0 and used.shared_bytes == 0
        # 2048 threads fit on a multiprocessor of 65,536 registers up to 32, 1024 up to 64.
        assert used.registers <= 64


def vector_bytes(ptx, instruction):
    """Bytes per thread of each masked access to global memory; the numbers are read unmasked."""
    found = re.findall(rf"@%p\d+ {instruction}\.global\.(?:v(\d)\.)?b(\d+)", ptx)
    return sorted(int(count or 1) * int(bits) // 8 for count, bits in found)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_compiled_kernel_reads_each_input_and_writes_each_result_once(step):
    pattern, kept, noise, guided = step
    rows = pattern.split(",")
    ptx = compiled(step, torch.float32, torch.bfloat16, 90).asm["ptx"]
    per_thread = triton_kernel.block(torch.float32) // (32 * triton_kernel.WARPS)
    read = [c for c in range(len(rows[0])) if any(row[c] != "0" for row in rows)]
    state = len(set(read) - {1})
    expected = [2 * per_thread] * (2 if guided else 1) + [4 * per_thread] * state
    assert vector_bytes(ptx, "ld") == expected
    assert vector_bytes(ptx, "st") == [4 * per_thread] * len(rows)
    assert "fma" not in ptx


@pytest.mark.gpu
@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_op_on_a_gpu_gives_the_bits_of_the_reference(step, dtypes):
    for shape in SHAPES:
        x = case(shape, step, *dtypes)
        assert_same_bits(solver_step(**case(shape, step, *dtypes, "cuda")), reference(**x))
