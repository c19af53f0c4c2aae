"""The forms that compilers take apart give what the ops give, and look at no values."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from optimize.kernels import catalog
from optimize.kernels.compiled_forms import compiled_forms

T = torch.tensor


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


SEES = T([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
CACHED = [
    numbers(2, 4, 3, 8),
    numbers(2, 2, 3, 8),
    numbers(2, 2, 3, 8) + 1,
    numbers(2, 2, 9, 8),
    numbers(2, 2, 9, 8) + 2,
    T([4, 0]),
]
VIDEO = [numbers(2, 3, 23, 8), numbers(2, 3, 23, 8) + 1, numbers(2, 3, 23, 8) + 2, 4, 5, [0, 2]]
MASK = torch.ones(2, 1, 1, 23, dtype=torch.bool).index_fill(3, T([1, 22]), False)
CASES = {
    "gather_rows": [numbers(2, 5, 3), T([[4, 0], [1, 1]]), 1],
    "gather_rows_of_one_sample": [numbers(1, 5, 3), T([[4, 0], [1, 1]]), 1],
    "gather_rows_of_the_last": [numbers(2, 3, 5), T([[4, 0], [1, 2]]), -1],
    "scatter_rows": [numbers(2, 5, 3), T([[4, 0], [1, 2]]), numbers(2, 2, 3), 1],
    "dynamic_threshold": [3 * numbers(3, 2, 7), 0.9, 2.5],
    "dynamic_threshold_without_bound": [3 * numbers(3, 2, 7), 1.0, float("inf")],
    "solver_step": [
        numbers(2, 3), numbers(2, 3) + 1, [numbers(2, 3) + 2], numbers(2, 3), "x0x,010"
    ],
    "solver_step_guided": [
        numbers(2, 3), numbers(4, 3), [], numbers(1, 3), "xxx", numbers(2, 3) + 3, T(2.5)
    ],
    "cached_attention": CACHED,
    "cached_attention_of_a_tree": [*CACHED, 0.3, SEES],
    "tree_attention": [
        CACHED[0], numbers(2, 2, 5, 8), numbers(2, 2, 5, 8) + 1, *CACHED[3:],
        torch.ones(3, 5, dtype=torch.bool).tril(),
    ],
    "tile_attention": [*VIDEO, 2, 1],
    "tile_attention_masked": [*VIDEO, 2, 1, MASK, 0.3],
    "tile_attention_dense": [*VIDEO[:5], [0, 1, 2, 3], 2, 1],
}  # fmt: skip


def op_of(case):
    return max((name for name in compiled_forms() if case.startswith(name[10:])), key=len)


@pytest.mark.parametrize("case", CASES)
def test_forms_equal_the_ops(case):
    name = op_of(case)
    expected = getattr(torch.ops.optimize, name[10:])(*CASES[case])
    found = compiled_forms()[name](*CASES[case])
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_forms_can_be_traced(case):
    """A form that looked at a value would fail here, where there are none."""
    form = compiled_forms()[op_of(case)]
    leaves, spec = pytree.tree_flatten(CASES[case])
    places = [place for place, item in enumerate(leaves) if isinstance(item, torch.Tensor)]

    def call(*given):
        values = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            values[place] = tensor
        return form(*pytree.tree_unflatten(values, spec))

    make_fx(call, tracing_mode="fake")(*(leaves[place] for place in places))


def test_every_kernel_has_a_form():
    assert set(compiled_forms()) == set(catalog.ONNX_LOWERINGS)


def leaves(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)
