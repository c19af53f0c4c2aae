"""The half of `optimize` that runs bundles: numpy and ONNX Runtime, never PyTorch.

    from optimize.runtime import load
    image = load("bundle/")(seed=0)["image"]

Names are imported when first used, so that `optimize.runtime.loop`, say, stays as light as it is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimize.runtime.session import Session, load

__all__ = ["Session", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from optimize.runtime import session

        return getattr(session, name)
    raise AttributeError(f"module 'optimize.runtime' has no attribute {name!r}")
