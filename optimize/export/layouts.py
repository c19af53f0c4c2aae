"""In which shape a bundle is laid out for those who serve it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from optimize.ir.errors import RecipeError

Layout = Literal["bundle", "triton-server", "browser"]


def write_layout(
    layout: str, bundle: Path, out: Path, *, overwrite: bool, ort_web: Path | None = None
) -> Path:
    """Writes a bundle in a layout.

    Args:
        layout: "triton-server" is a model repository, "browser" a folder of static files.
        bundle: folder of a bundle.
        out: the folder to make.
        overwrite: replace a folder that exists.
        ort_web: folder `dist` of an installed onnxruntime-web, for "browser".
    Raises:
        RecipeError: no such layout, or options that do not go with it.
    """
    check_layout(layout, ort_web)
    return _WRITERS[layout](bundle, out, overwrite=overwrite, ort_web=ort_web)


def check_layout(layout: str, ort_web: Path | None) -> None:
    """Refuses a layout or its options before any work is done for them."""
    if layout not in get_args(Layout):
        known = ", ".join(get_args(Layout))
        raise RecipeError(f"layout: found {layout!r}, expected one of {known}")
    if (layout == "browser") != (ort_web is not None):
        raise RecipeError(
            f"--ort-web: found {'one' if ort_web else 'none'} with --layout {layout}; "
            "--layout browser needs the folder `dist` of an installed onnxruntime-web "
            "(npm install onnxruntime-web), other layouts need none"
        )


def _triton(bundle: Path, out: Path, *, overwrite: bool, ort_web: Path | None) -> Path:
    from optimize.export.triton_server import write_model_repository

    return write_model_repository(bundle, out, overwrite=overwrite)


def _browser(bundle: Path, out: Path, *, overwrite: bool, ort_web: Path | None) -> Path:
    from optimize.export.browser import write_site

    assert ort_web is not None
    return write_site(bundle, out, runtime=ort_web, overwrite=overwrite)


_WRITERS: Mapping[str, Callable[..., Path]] = {"triton-server": _triton, "browser": _browser}
