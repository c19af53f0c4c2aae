"""The kernels that TensorRT can take as plugins, found in the kernel folders.

A kernel takes part by having a file `tensorrt_plugin.py` with `NAME`, the op's name, and
`register(capability)`, which tells `tensorrt.plugin` of it.
"""

from collections.abc import Mapping
from importlib import import_module, resources
from types import ModuleType

PLUGIN_FILE = "tensorrt_plugin"

_registered: set[str] = set()
"""TensorRT takes each name once in a process."""


def plugins() -> Mapping[str, ModuleType]:
    """Op name → the module of its plugin."""
    found: dict[str, ModuleType] = {}
    for folder in sorted(resources.files("optimize.kernels").iterdir(), key=lambda item: item.name):
        if folder.joinpath(f"{PLUGIN_FILE}.py").is_file():
            module = import_module(f"optimize.kernels.{folder.name}.{PLUGIN_FILE}")
            found[module.NAME] = module
    return found


def register_plugins(capability: int) -> tuple[str, ...]:
    """Registers every plugin for a GPU, once in a process; returns their names.

    Args:
        capability: of the GPU, 10 * major + minor.
    Raises:
        ImportError: TensorRT is too old for plugins that are compiled ahead of time.
    """
    for name, module in plugins().items():
        if name not in _registered:
            module.register(capability)
            _registered.add(name)
    return tuple(sorted(_registered))
