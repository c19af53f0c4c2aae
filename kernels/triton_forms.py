"""The kernels that have a Triton form. Importing this imports Triton, which takes a moment.

A form compiles itself for a call of its op, ahead of time:

    kernel = TRITON_FORMS["optimize::solver_step"](90, latent, output, kept, coefficients, "1x")
    usage_of(kernel)

It takes the compute capability of a GPU, which need not be here, and the arguments of the op, whose
tensors may lie on the meta device. It gives Triton's compiled kernel, or None where another form
of the op would run.
"""

from collections.abc import Callable, Mapping
from typing import Any

from optimize.kernels.solver_step.triton_call import compile_call as solver_step
from optimize.kernels.tile_attention.triton_tuning import compile_call as tile_attention

TRITON_FORMS: Mapping[str, Callable[..., Any]] = {
    "optimize::solver_step": solver_step,
    "optimize::tile_attention": tile_attention,
}
