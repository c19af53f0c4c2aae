"""Half precision: what is rounded and what is not, on toy programs and on families."""

import numpy as np
import pytest
import torch

from optimize.ir.errors import PassDeclined
from optimize.ir.low_precision import MOVES, PRODUCTS
from optimize.passes.catalog import ORDER
from optimize.passes.lower_precision import LowerPrecision
from optimize.passes.pipeline import run_passes

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("family", ["sd3", "wan", "lumina"])
def test_products_run_in_half_precision_and_nothing_else(captured, family, name):
    _, program = captured(family, torch.float32)
    after = run_passes(program, [LowerPrecision(name)])
    record = after.history[-1]
    assert 0 < record.error < 40 * EPSILON[name]
    nodes = [n for graph in after.graphs.values() for n in graph.graph.nodes]
    products = [n for n in nodes if n.op == "call_function" and n.target in PRODUCTS]
    assert len(products) == len(record.sites) > 5
    assert {n.meta["val"].dtype for n in products} == {DTYPES[name]}
    casts = (torch.ops.aten._to_copy.default,)
    for node in nodes:
        value = node.meta.get("val")
        is_low = isinstance(value, torch.Tensor) and value.dtype == DTYPES[name]
        if node.op == "call_function" and is_low:
            assert (
                node.target in PRODUCTS | MOVES
                or node.target in casts
                or "getitem" in str(node.target)
            ), node.target


def test_inputs_outputs_and_state_keep_their_dtypes(captured):
    _, program = captured("sd3", torch.float32)
    after = run_passes(program, [LowerPrecision("float16")])
    assert after.loop == program.loop and after.signature == program.signature
    for role, graph in after.graphs.items():
        before = program.graphs[role]
        assert graph.inputs == before.inputs and graph.outputs == before.outputs
        for name, node in graph.output_nodes().items():
            assert node.meta["val"].dtype == before.output_nodes()[name].meta["val"].dtype


def test_weights_of_products_take_half_the_bytes_and_biases_of_norms_do_not_change(captured):
    _, program = captured("sd3", torch.float32)
    after = run_passes(program, [LowerPrecision("bfloat16")])
    details = after.history[-1].details
    assert sum(w.nbytes for w in after.weights.values()) == details["weight_bytes_after"]
    assert sum(w.nbytes for w in program.weights.values()) == details["weight_bytes_before"]
    lowered = [name for name, w in after.weights.items() if w.dtype == torch.bfloat16]
    kept = [name for name, w in after.weights.items() if w.dtype == torch.float32]
    assert lowered and kept
    for name in lowered:
        torch.testing.assert_close(
            after.weights[name].float(), program.weights[name], rtol=2**-8, atol=1e-30
        )


def test_a_program_without_products_declines(captured):
    _, program = captured("sd3", torch.float32)
    low = run_passes(program, [LowerPrecision("float16")])
    with pytest.raises(PassDeclined, match="no graph has a matrix product of float32 weights"):
        run_passes(low, [LowerPrecision("float16")])


def test_dtypes_are_checked_and_the_pass_comes_last():
    with pytest.raises(ValueError, match="dtype: found 'int8', expected one of float16, bfloat16"):
        LowerPrecision("int8")
    assert {rule.first for rule in ORDER if rule.then == "lower_precision"} >= {
        "fuse_solver",
        "attach_draft",
        "cache_regions",
    }


def test_float64_is_rounded_too(captured):
    _, program = captured("dit", torch.float64)
    after = run_passes(program, [LowerPrecision("float16")])
    assert 0 < after.history[-1].error < 0.02
    assert np.isfinite(after.history[-1].error)
