"""Removes from ONNX graphs what engines would have to remove at every load.

The rules are those of onnxscript: constants are folded, reshapes of reshapes, casts of casts and
nodes that change nothing merged. No weight is read: they are outside, and stay so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

FOLDED_INPUT, FOLDED_OUTPUT = 1024, 4096
"""Elements of constants that are folded, and of what folding them may make."""

MAX_NODES = 2000
"""Larger graphs, such as those of unrolled steps, stay as they are: it takes a second per 2000."""


def simplified(model: ir.Model) -> ir.Model:
    """The model with fewer nodes; the same numbers, up to the rounding of folded constants."""
    if len(model.graph) > MAX_NODES:
        return model
    # They take a second to import.
    from onnx_ir.passes import Sequential, common
    from onnxscript import optimizer, rewriter

    # It reports each fold it does not do.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    with _weights_hidden(model):
        optimizer.fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=FOLDED_INPUT,
            output_size_limit=FOLDED_OUTPUT,
        )
        model = rewriter.rewrite(model)
    # Not the whole of `optimizer.optimize`: it compares weights, which are not written yet.
    tidy = Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    return tidy(model).model


@contextmanager
def _weights_hidden(model: ir.Model) -> Iterator[None]:
    """Rules look into initializers; those whose file is not written yet seem to be unknown."""
    outside = {
        value: value.const_value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    for value in outside:
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in outside.items():
            value.const_value = tensor
