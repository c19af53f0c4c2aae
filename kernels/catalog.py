"""Every kernel, by the name of its folder: adding one is a folder and a line here."""

from importlib import import_module

KERNELS: tuple[str, ...] = ()


def register() -> None:
    """Registers the ops of all kernels with PyTorch, under `torch.ops.optimize`."""
    for name in KERNELS:
        import_module(f"optimize.kernels.{name}.schema")
