"""The kernels that have a Triton form: op name → what compiles it, ahead of time, for a call.

    kernel = TRITON_FORMS["optimize::solver_step"](90, latent, output, kept, coefficients, "1x")
    usage_of(kernel)

It takes the compute capability of a GPU, which need not be here, and the arguments of the op, whose
tensors may lie on the meta device. It gives Triton's compiled kernel, or None where another form
of the op would run. Triton, which takes a moment to import and may not be there, is imported with
the first call.
"""

from collections.abc import Callable, Mapping
from typing import Any


def _solver_step(capability: int, *arguments: Any, **options: Any) -> Any:
    from optimize.kernels.solver_step.triton_call import compile_call

    return compile_call(capability, *arguments, **options)


def _tile_attention(capability: int, *arguments: Any, **options: Any) -> Any | None:
    from optimize.kernels.tile_attention.triton_tuning import compile_call

    return compile_call(capability, *arguments, **options)


TRITON_FORMS: Mapping[str, Callable[..., Any]] = {
    "optimize::solver_step": _solver_step,
    "optimize::tile_attention": _tile_attention,
}
