"""What this machine has that native code may need. Loads no library but the GPU's driver."""

import ctypes
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

VECTOR_FLAGS = ("avx", "amx", "fma", "f16c", "bmi", "sse4")
"""How the names of processor features begin that compilers use without being told at run time."""

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "torch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Library → the distributions that carry it."""

LIBRARIES = {"aoti": "torch", "tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Target → the library that runs it, and must be the version that built it."""

EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Target → the extra that installs its library."""

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver."""


def version_of(library: str) -> str | None:
    """The installed version of a library of `PACKAGES`, without its build tag; None without it."""
    for package in PACKAGES[library]:
        try:
            return metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def platform_name() -> str:
    """System and processor, such as "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


@cache
def processor_features() -> frozenset[str]:
    """The vector features of the processor; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(
        flag for flag in flags.partition(":")[2].split() if flag.startswith(VECTOR_FLAGS)
    )


@cache
def gpu_capability() -> str | None:
    """The compute capability of the first NVIDIA GPU, such as "SM89"; None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        numbers.append(value.value)
    return f"SM{numbers[0]}{numbers[1]}"
