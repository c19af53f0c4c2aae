"""Bundle → a folder of static files in which a browser runs it, with onnxruntime-web.

    site/
      index.html page.js worker.js session.js …   the page and the loop driver, as they are shipped
      ort/                                        onnxruntime-web, WebAssembly without a GPU
      bundle/                                     what of the bundle the driver reads

Native code, reports and tokenizers stay behind: the driver has no use for them.
"""

import os
from importlib import resources
from pathlib import Path

from optimize.export.publish import staged
from optimize.measure.receipt import EXAMPLE_FILE
from optimize.runtime.bundle import Bundle, open_bundle, read_file
from optimize.runtime.errors import DeviceError, IntegrityError, ResourceError
from optimize.runtime.loop import calls
from optimize.runtime.manifest import (
    MANIFEST_FILE,
    TABLES_FILE,
    WEIGHTS_FILE,
    Manifest,
    dump_manifest,
)

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page loads of onnxruntime-web: its interface, and the WebAssembly code with its loader."""

PAGE_SUFFIXES = (".js", ".html", ".css")


def write_site(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runtime: Path,
    overwrite: bool = False,
) -> Path:
    """Writes a site that runs a bundle; any server of static files can serve it.

    Args:
        bundle: the folder of a bundle; it is verified first.
        out: the folder to make; its parent must exist.
        runtime: the folder `dist` of an installed onnxruntime-web.
        overwrite: replace a folder that exists; it stays whole until the new one is.
    Returns:
        The folder that was made.
    Raises:
        BundleError: what `open_bundle` refuses.
        DeviceError: the loop holds values of a dtype that browsers lack.
        ResourceError: `runtime` lacks a file, or the site cannot be written.
    """
    code = {f"ort/{name}": _runtime_file(Path(runtime), name) for name in RUNTIME_FILES}
    opened = open_bundle(bundle, target="onnx")
    _check_dtypes(opened.manifest)
    with staged(out, overwrite=overwrite) as staging:
        for name, content in (_page_files() | code).items():
            staging.write(name, [content])
        staging.write(f"bundle/{MANIFEST_FILE}", [dump_manifest(opened.manifest)])
        for name in _read_names(opened):
            # Read anew: only the part of the bundle that a session needs is in memory already.
            data = read_file(bundle, name)
            written = staging.write(f"bundle/{name}", [] if data is None else [data.data])
            if written != opened.manifest.files[name]:
                raise IntegrityError(
                    f"{bundle}: {name} changed while the site was written; write it again"
                )
        staging.publish()
    return Path(out)


def _read_names(bundle: Bundle) -> list[str]:
    """The files that the driver reads, each once."""
    manifest = bundle.manifest
    roles = dict.fromkeys(call.graph for call in calls(manifest.loop.body))
    names = [TABLES_FILE, WEIGHTS_FILE, *(manifest.graphs[role].file for role in roles)]
    if EXAMPLE_FILE in manifest.files:
        names.append(EXAMPLE_FILE)
    return list(dict.fromkeys(names))


def _page_files() -> dict[str, bytes]:
    folder = resources.files("optimize.runtime").joinpath("browser")
    files = sorted(folder.iterdir(), key=lambda item: item.name)
    return {item.name: item.read_bytes() for item in files if item.name.endswith(PAGE_SUFFIXES)}


def _runtime_file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise ResourceError(
            f"{folder}: found no {name}, expected the folder `dist` of onnxruntime-web; run "
            "`npm install onnxruntime-web` and give node_modules/onnxruntime-web/dist"
        ) from error
    except OSError as error:
        raise ResourceError(f"{folder / name}: cannot be read: {error.strerror}") from error


def _check_dtypes(manifest: Manifest) -> None:
    """Refuses values between graphs that no tensor of onnxruntime-web holds; weights may be any."""
    slots = {item.name: item.dtype for item in manifest.loop.slots}
    noise = {item.name: item.dtype for item in manifest.loop.noise}
    fields = {item.name: item.dtype for item in manifest.signature.inputs}
    for name, dtype in (*slots.items(), *noise.items(), *fields.items()):
        if dtype == "bfloat16":
            raise DeviceError(
                f"{name}: found dtype bfloat16, which browsers lack, expected another; export the "
                "bundle in float32 or float16"
            )
