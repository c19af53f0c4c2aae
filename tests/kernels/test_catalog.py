"""The list of kernels against the folders."""

from pathlib import Path

from optimize.kernels.catalog import KERNELS, register

FOLDER = Path(__file__).parents[2] / "kernels"


def test_every_kernel_folder_is_listed() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/schema.py")}
    assert folders == set(KERNELS), f"kernels/catalog.py and the folders differ: {folders}"


def test_kernels_register() -> None:
    register()
