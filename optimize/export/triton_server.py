"""Bundle → model repository of NVIDIA Triton Inference Server.

    out/README.md               how to start the server
    out/<name>/config.pbtxt     inputs, outputs, instances
    out/<name>/1/model.py       runs inside the server
    out/<name>/1/bundle/        the bundle, as it was

The model runs on Triton's Python backend, because a loop over several graphs is more than its ONNX
Runtime backend can hold.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

from optimize.export.publish import Staging, check_target, staged
from optimize.export.triton_config import (
    ANY,
    PROMPT,
    SEED,
    Device,
    Tensor,
    config_text,
    inputs,
    outputs,
    streamed,
)
from optimize.ir.errors import RecipeError
from optimize.runtime.bundle import Bundle, open_bundle, read_file
from optimize.runtime.errors import IntegrityError
from optimize.runtime.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest

VERSION_FOLDER = "1"
MODEL_FILE = Path(__file__).with_name("triton_model.py")
README_FILE = Path(__file__).with_name("triton_readme.md")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_DATATYPES = {"TYPE_STRING": "BYTES"}
_LONGEST_EXAMPLE = 64


def write_model_repository(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    device: Device = "cpu",
    instances: int = 1,
    concurrency: int = 4,
    threads: int | None = None,
    stream: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a model repository that serves a bundle; a reader sees all of it or none.

    Args:
        bundle: folder of a bundle; every byte is verified.
        out: the repository to write; its parent must exist.
        name: of the model; None takes the name of the bundle's folder.
        device: run on the "cpu", or on the "gpu" with ONNX Runtime's CUDA provider.
        instances: processes of the server that load the bundle, on the CPU or on each GPU.
        concurrency: requests that one instance runs at once on its one copy of the weights.
        threads: of one operator on the CPU; None lets ONNX Runtime choose.
        stream: answer in parts while the loop runs, where a result grows; clients need a stream.
        overwrite: replace a folder that exists.
    Returns:
        The path of the repository.
    Raises:
        RecipeError: an option that cannot work.
        BundleError: its subclasses say what is wrong with the bundle.
        ResourceError: the folder cannot be written.
    """
    target, source = Path(os.path.abspath(out)), Path(bundle)
    name = _checked_name(source.resolve().name if name is None else name)
    _check_numbers(device, instances, concurrency, threads)
    check_target(target, overwrite)
    opened = open_bundle(source, target="onnx")
    takes = inputs(opened.manifest)
    gives = streamed(opened) if stream else outputs(opened)
    parameters = {"concurrency": str(concurrency)}
    if threads is not None:
        parameters["threads"] = str(threads)
    config = config_text(
        name,
        takes,
        gives,
        device=device,
        instances=instances,
        stream=stream,
        parameters=parameters,
    )
    readme = _readme(name, opened.manifest, takes, device, stream)
    with staged(target, overwrite=overwrite) as staging:
        staging.write("README.md", [readme.encode()])
        staging.write(f"{name}/config.pbtxt", [config.encode()])
        staging.write(f"{name}/{VERSION_FOLDER}/model.py", [MODEL_FILE.read_bytes()])
        _copy_bundle(opened, source, staging, f"{name}/{VERSION_FOLDER}/bundle")
        staging.publish()
    return target


def _copy_bundle(opened: Bundle, source: Path, staging: Staging, folder: str) -> None:
    """Copies manifest, signature and what is named; each file is verified again as it is read."""
    for path, entry in sorted(opened.manifest.files.items()):
        content = read_file(source, path)
        if content is None or staging.write(f"{folder}/{path}", [content.data]) != entry:
            raise IntegrityError(
                f"{path}: changed while the bundle was copied; write the repository again"
            )
    staging.write(f"{folder}/{MANIFEST_FILE}", [opened.manifest_bytes])
    if opened.provenance != "unsigned":
        staging.write(f"{folder}/{SIGNATURE_FILE}", [(source / SIGNATURE_FILE).read_bytes()])


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"name: found {name[:80]!r}, expected 1 to 200 letters, digits, '_', '-' and '.' after "
            "a letter or digit: it is part of the server's addresses; pass another name"
        )
    return name


def _check_numbers(device: str, instances: int, concurrency: int, threads: int | None) -> None:
    if device not in ("cpu", "gpu"):
        raise RecipeError(f"device: found {device!r}, expected 'cpu' or 'gpu'")
    for what, number in (
        ("instances", instances),
        ("concurrency", concurrency),
        ("threads", 1 if threads is None else threads),
    ):
        if isinstance(number, bool) or not 1 <= number <= 1024:
            raise RecipeError(f"{what}: found {number!r}, expected a number in [1, 1024]")


def _readme(
    name: str, manifest: Manifest, takes: Sequence[Tensor], device: Device, stream: bool
) -> str:
    """How to start the server and what to send it."""
    extra = "[text]" if manifest.prompting is not None else ""
    # Both packages are one Python module; what is installed last is what runs.
    swap = " && pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    return Template(README_FILE.read_text("utf-8")).substitute(
        name=name,
        wheel=f"optimize-{manifest.generator.version}-py3-none-any.whl",
        extra=extra,
        runtime=swap if device == "gpu" else "",
        gpus=" --gpus all" if device == "gpu" else "",
        inputs="\n".join(_row(tensor) for tensor in takes),
        asking=_asking(name, takes, manifest.prompting is not None, stream),
    )


def _row(tensor: Tensor) -> str:
    sizes = ", ".join("any" if size == ANY else str(size) for size in tensor.dims)
    return f"| `{tensor.name}` | {tensor.type} | [{sizes}] | {'no' if tensor.optional else 'yes'} |"


def _asking(name: str, takes: Sequence[Tensor], prompts: bool, stream: bool) -> str:
    if stream and not prompts:
        return (
            "The model streams: send the request with `stream_infer` of a gRPC client (port 8001); "
            "each response is one part of the result, the last one is empty."
        )
    if stream:
        body = json.dumps({PROMPT: "Hello"} | ({SEED: 0} if _has(takes, SEED) else {}))
        return (
            "The model streams: each response is a piece of the answer, together they are its "
            "text.\n\n"
            f"```sh\ncurl -N -d '{body}' localhost:8000/v2/models/{name}/generate_stream\n```\n\n"
            "A gRPC client (port 8001) uses `stream_infer`; the last response is empty."
        )
    request = example_request(takes, prompts)
    if request is None:
        return "Send the request with a client library (`pip install tritonclient[http]`)."
    body = json.dumps(request)
    return f"```sh\ncurl -d '{body}' localhost:8000/v2/models/{name}/infer\n```"


def _has(takes: Sequence[Tensor], name: str) -> bool:
    return any(tensor.name == name for tensor in takes)


def example_request(takes: Sequence[Tensor], prompts: bool) -> dict[str, Any] | None:
    """A small request in the JSON of Triton's HTTP protocol; None where it would not be small."""
    given = [tensor for tensor in takes if not tensor.optional or tensor.name == SEED]
    given += [tensor for tensor in takes if prompts and tensor.name == PROMPT]
    made = list(_examples(given))
    if any(len(item["data"]) > _LONGEST_EXAMPLE for item in made):
        return None
    return {"inputs": made}


def _examples(tensors: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    for tensor in tensors:
        shape = [1 if size == ANY else size for size in tensor.dims]
        count = 1
        for size in shape:
            count *= size
        yield {
            "name": tensor.name,
            "datatype": _DATATYPES.get(tensor.type, tensor.type.removeprefix("TYPE_")),
            "shape": shape,
            "data": (["Hello"] if tensor.name == PROMPT else [0]) * count,
        }
