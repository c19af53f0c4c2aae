"""tile_attention as a plugin of TensorRT: interpreted, compiled without a GPU, and registered."""

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl
from triton.backends.nvidia.compiler import get_ptxas

from optimize.kernels.tile_attention import tensorrt_plugin, triton_kernel
from optimize.kernels.tile_attention.pattern import TilePattern
from optimize.kernels.tile_attention.reference import reference
from optimize.kernels.tile_attention.triton_blocks import Blocks
from tests.kernels.interpreting import interpret

PATTERN = TilePattern(4, 37, (0, 2), 5, 3)


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel in Triton's interpreter, on the CPU."""
    names = {
        tl: ("max", "sum"),
        triton_kernel: ("_row", "_attend", "_kernel"),
        tensorrt_plugin: ("_tile_attention",),
    }
    interpret(monkeypatch, names)


def run(query, key, value, pattern, scale):
    """Launches the wrapper as TensorRT does: contiguous tensors, a result that starts as NaN."""
    blocks = Blocks(32, 16, 4, 2)
    batch, heads, length, width = query.shape
    result = torch.full((batch, heads, length, value.shape[3]), torch.nan)
    given = tensorrt_plugin.arguments(pattern, heads, width, value.shape[3], scale, blocks)
    fixed = tuple(tl.constexpr(item) if isinstance(item, int) else item for item in given)
    grid = (triton_kernel.programs(pattern, blocks), batch * heads)
    tensorrt_plugin._tile_attention[grid](query, key, value, result, fixed)
    return result


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    "pattern", [PATTERN, TilePattern(3, 50, (1,)), TilePattern(2, 9, (0, 1), 1, 0)], ids=str
)
def test_interpreted_kernel_equals_the_reference(interpreted, pattern, scale):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, pattern.length, width, generator=generator) for width in (24, 24, 20)
    )
    found = run(query, key, value, pattern, scale)
    expected = reference(query, key, value, pattern, None, scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_compiled_entry_has_the_four_pointers_and_nothing_else(capability, dtype, tmp_path):
    found = tensorrt_plugin.compiled(capability, dtype, PATTERN, 3, 64, 48)
    entries = re.findall(r"\.entry (\w+)\((.*?)\)", found.ptx, re.DOTALL)
    assert [name for name, _ in entries] == [found.name]
    kinds = [re.sub(r"\s+", " ", item).strip() for item in entries[0][1].split(",")]
    assert len(kinds) == 4
    assert all(kind.startswith(".param .u64 .ptr .global") for kind in kinds)
    target = re.search(r"\.target (sm_\d+a?)", found.ptx)[1]
    assert target.removeprefix("sm_").removesuffix("a") == str(capability)
    assert f".reqntid {found.threads}" in found.ptx
    # The assembler accepts the code without the parameters that were taken out.
    source = tmp_path / "kernel.ptx"
    source.write_text(found.ptx)
    assembler = get_ptxas(capability).path
    subprocess.run([assembler, f"-arch={target}", source, "-o", tmp_path / "kernel"], check=True)


def test_scratch_memory_in_use_is_not_taken_away():
    names = ["query", "key", "value", "result", "scratch"]
    body = "\n)\n{ld %s;}"
    entry = ".visible .entry kernel(\n .param " + ",\n .param ".join(names) + body
    with pytest.raises(AssertionError):
        tensorrt_plugin._without_scratch(entry % "scratch")
    left = tensorrt_plugin._without_scratch(entry % "query")
    assert left == entry.replace(",\n .param scratch", "") % "query"


def test_refuses_wide_heads():
    with pytest.raises(ValueError, match="found head dimensions 64 and 160, expected at most 128"):
        tensorrt_plugin.compiled(90, torch.float16, PATTERN, 3, 64, 160)


@dataclass
class TensorDesc:
    """TensorRT's, with plain integers as symbolic sizes; -1 in `shape` is a dynamic size."""

    shape_expr: list[int]
    dtype: str = "HALF"
    dynamic: tuple[int, ...] = (0,)

    @property
    def shape(self):
        return [-1 if i in self.dynamic else size for i, size in enumerate(self.shape_expr)]

    def like(self):
        return replace(self)


class SymIntExprs(list[int]):
    def __init__(self, length):
        super().__init__([0] * length)


@pytest.fixture
def registered(monkeypatch):
    """What `register` gives to a stand-in for TensorRT, by kind."""
    found: dict[str, Any] = {}
    plugin: Any = ModuleType("tensorrt.plugin")
    for kind in ("register", "autotune", "aot_impl"):

        def decorator(name, kind=kind):
            assert name == "optimize::tile_attention"
            return lambda function: found.setdefault(kind, function)

        setattr(plugin, kind, decorator)
    plugin.TensorDesc, plugin.SymIntExprs, plugin.SymExprs = TensorDesc, SymIntExprs, list
    plugin.KernelLaunchParams = SimpleNamespace
    plugin.AutoTuneCombination = lambda types, layouts: (types, layouts)
    plugin.ShapeExprs = SimpleNamespace(from_tuple=list)
    library: Any = ModuleType("tensorrt")
    library.DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16")
    library.plugin, library.__version__ = plugin, "10.8"
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    tensorrt_plugin.register(90)
    return found


def attributes(pattern, scale=0.0):
    references = np.array(pattern.references, np.int64)
    return (
        pattern.frames, pattern.tokens_per_frame, references, pattern.prefix, pattern.suffix, scale,
    )  # fmt: skip


def descriptions(batch=2, heads=3, width=64, value_width=48, dtype="HALF"):
    widths = (width, width, value_width)
    return [TensorDesc([batch, heads, PATTERN.length, size], dtype) for size in widths]


def test_signatures_agree_as_tensorrt_demands(registered):
    first = inspect.signature(registered["register"])
    given = {name: item.annotation for name, item in first.parameters.items()}
    assert first.return_annotation is TensorDesc
    for kind, names, more in (
        ("autotune", list(given)[:3], ["outputs"]),
        ("aot_impl", list(given), ["outputs", "tactic"]),
    ):
        signature = inspect.signature(registered[kind])
        assert list(signature.parameters) == [*names, *more]
        for name in names:
            assert signature.parameters[name].annotation == given[name]
        assert signature.parameters["outputs"].annotation == tuple[TensorDesc]


def test_result_has_the_width_of_value_and_query_keeps_its_own(registered):
    query, key, value = descriptions()
    result = registered["register"](query, key, value, *attributes(PATTERN))
    assert result.shape_expr == [2, 3, PATTERN.length, 48] and result.dtype == "HALF"
    assert query.shape_expr == [2, 3, PATTERN.length, 64]


def test_offers_one_dtype_for_all_tensors(registered):
    tensors = descriptions()
    assert registered["autotune"](*tensors, (tensors[2],)) == [
        (", ".join([name] * 4), "LINEAR") for name in ("FP32", "FP16", "BF16")
    ]


@pytest.mark.parametrize("scale", [0.0, 0.25])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("FLOAT", torch.float32), ("HALF", torch.float16), ("BF16", torch.bfloat16)],
)
def test_launches_the_compiled_kernel(registered, name, dtype, scale):
    tensors = descriptions(dtype=name)
    found_name, ptx, launch, more = registered["aot_impl"](
        *tensors, *attributes(PATTERN, scale), (tensors[2],), 0
    )
    expected = tensorrt_plugin.compiled(90, dtype, PATTERN, 3, 64, 48, scale or 1 / 8)
    assert (found_name, ptx) == (expected.name, expected.ptx)
    assert vars(launch) == {
        "grid_x": expected.programs,
        "grid_y": 2 * 3,
        "block_x": expected.threads,
        "shared_mem": expected.shared_bytes,
    }
    assert len(more) == 0


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (0, {"dynamic": (0, 1)}),
        (1, {"dynamic": (0, 2)}),
        (2, {"shape_expr": [2, 3, 99, 48]}),
        (1, {"shape_expr": [2, 3, PATTERN.length, 32]}),
    ],
)
def test_refuses_sizes_that_do_not_fit(registered, place, changes):
    tensors = descriptions()
    tensors[place] = replace(tensors[place], **changes)
    with pytest.raises(ValueError, match=r"found query .*, expected \[B, N, 156, D\] twice"):
        registered["aot_impl"](*tensors, *attributes(PATTERN), (tensors[2],), 0)


def test_says_what_to_install_where_tensorrt_is_missing_or_old(monkeypatch, registered):
    monkeypatch.delattr("tensorrt.plugin.aot_impl")
    with pytest.raises(ImportError, match="found TensorRT 10.8, expected TensorRT 10.9"):
        tensorrt_plugin.register(90)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        ImportError, match=r"found no tensorrt.plugin, .* pip install 'optimize\[tensorrt"
    ):
        tensorrt_plugin.register(90)


def test_asks_for_a_capability_where_there_is_no_gpu(monkeypatch, registered):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"found no GPU, .* register.capability=90."):
        tensorrt_plugin.register()


def test_registers_with_the_real_tensorrt():
    plugin = pytest.importorskip("tensorrt.plugin", reason="tensorrt is not installed")
    tensorrt_plugin.register(90)
    assert plugin.op.optimize.tile_attention.plugin_id == "optimize::tile_attention"
