"""A bundle as a model repository of NVIDIA Triton Inference Server.

    write_model_repository("bundle", "models", name="digits")

    models/digits/config.pbtxt        inputs, outputs and instances, from the bundle's signature
    models/digits/1/model.py          answers requests with a session of the torch-free runtime
    models/digits/1/bundle/           the bundle, as it is
    models/README.md                  how to start the server

Requests are not joined into batches: noise is drawn by the place of a sample in its batch, so what
a request gets would depend on who asks beside it. A request may have a batch of its own.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import onnx

from optimize.export.publish import staged
from optimize.ir.errors import RecipeError
from optimize.runtime.bundle import Bundle, open_bundle
from optimize.runtime.loop import appended_results, calls
from optimize.runtime.manifest import MANIFEST_FILE
from optimize.runtime.prompting import IMAGE
from optimize.runtime.request import field_shape

VERSION = "1"
CHUNK_BYTES = 4 * 2**20

TRITON_TYPES: Mapping[str, str] = {
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_FP32",  # numpy, through which values pass, has none
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
"""Our dtype names → Triton's."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Field:
    """An input or output of the model; `dims` has -1 for what a request decides."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False
    scalar: bool = False


def write_model_repository(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    overwrite: bool = False,
    kind: Literal["cpu", "gpu"] = "cpu",
    instances: int = 1,
    decoupled: bool = False,
) -> Path:
    """Writes a model repository with one model.

    Args:
        bundle: folder of a bundle; verified first, and copied.
        out: the folder to make; its parent must exist.
        name: of the model; the name of the bundle's folder by default.
        overwrite: replace a folder that exists; it stays whole until the new one is.
        kind: where instances run; on "gpu" with ONNX Runtime's CUDA provider.
        instances: how many answer at once, each with the bundle loaded.
        decoupled: stream the result that grows, such as text, part by part.
    Returns:
        The absolute path of the repository.
    Raises:
        BundleError: the bundle is none, or damaged.
        RecipeError: a name that Triton does not take, or nothing grows that could be streamed.
        ResourceError: the folder exists or cannot be written.
    """
    source = Path(bundle)
    name = source.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"name: found {name!r}, expected letters, digits, '_', '-' and '.', starting with a "
            "letter or digit"
        )
    if instances < 1:
        raise RecipeError(f"instances: found {instances}, expected at least 1")
    opened = open_bundle(source)
    grows = appended_results(opened.manifest.loop)
    if decoupled and not grows:
        raise RecipeError(
            "decoupled: found no result growing step by step, expected one to stream; leave it out"
        )
    config = model_config(opened, name, kind, instances, decoupled)
    target = Path(os.path.abspath(out))
    with staged(target, overwrite=overwrite) as staging:
        folder = f"{name}/{VERSION}"
        staging.write(f"{name}/config.pbtxt", [config.encode()])
        template = resources.files("optimize.export").joinpath("triton_model.py")
        staging.write(f"{folder}/model.py", [template.read_bytes()])
        for file in (MANIFEST_FILE, *sorted(opened.manifest.files)):
            written = staging.write(f"{folder}/bundle/{file}", _chunks(source / file))
            entry = opened.manifest.files.get(file, written)
            if written != entry:
                raise RecipeError(f"{file}: changed while it was copied; write the layout again")
        staging.write("README.md", [_readme(name, kind).encode()])
        staging.publish()
    return target


def inputs_of(bundle: Bundle) -> list[Field]:
    """Every field of a request: the signature's, prompts, the noise, the seed and named sizes."""
    manifest = bundle.manifest
    prompting = manifest.prompting
    fields = []
    for item in manifest.signature.inputs:
        optional = item.default is not None or prompting is not None
        fields.append(_field(item.name, item.dtype, item.shape, optional))
    if prompting is not None:
        fields.append(Field("prompt", "TYPE_STRING", (-1,), optional=True))
        if prompting.image is not None and IMAGE in prompting.template:
            fields.append(Field("image", "TYPE_UINT8", (-1, -1, -1), optional=True))
    fields += [
        _field(noise.name, noise.dtype, field_shape(noise), True) for noise in manifest.loop.noise
    ]
    fields.append(Field("seed", "TYPE_UINT64", (1,), optional=True, scalar=True))
    taken = {field.name for field in fields}
    fields += [
        Field(size, "TYPE_INT64", (1,), optional=True, scalar=True)
        for size in manifest.signature.dimensions
        if size not in taken
    ]
    return fields


def outputs_of(bundle: Bundle, decoupled: bool) -> list[Field]:
    """The results; of a stream only what grows."""
    manifest = bundle.manifest
    slots = {slot.name: slot for slot in manifest.loop.slots}
    fields: list[Field] = []
    for call in calls(manifest.loop.body):
        for output, to in call.outputs.items():
            if to.append is None or to.append in {field.name for field in fields}:
                continue
            dtype, rank = _type_of(bundle, call.graph, output)
            # Parts [B, ...] lie in a dimension of their own; while streaming they come alone.
            more = 0 if decoupled or to.counts is not None else 1
            fields.append(Field(to.append, TRITON_TYPES[dtype], (-1,) * (rank + more)))
    if not decoupled:
        fields += [
            _field(result, slots[slot].dtype, slots[slot].shape, False)
            for result, slot in manifest.loop.results.items()
        ]
    if manifest.prompting is not None:
        fields.append(Field("text", "TYPE_STRING", (-1,)))
    return fields


def model_config(bundle: Bundle, name: str, kind: str, instances: int, decoupled: bool) -> str:
    """The text of config.pbtxt."""
    inputs, outputs = inputs_of(bundle), outputs_of(bundle, decoupled)
    scalars = [field.name for field in inputs if field.scalar]
    parameters = {"scalars": ",".join(scalars)}
    if kind == "gpu":
        parameters["providers"] = "CUDAExecutionProvider,CPUExecutionProvider"
    lines = [f'name: "{name}"', 'backend: "python"', "max_batch_size: 0"]
    lines += [line for field in inputs for line in _field_lines("input", field)]
    lines += [line for field in outputs for line in _field_lines("output", field)]
    lines.append(f"instance_group [ {{ kind: KIND_{kind.upper()}, count: {instances} }} ]")
    if decoupled:
        lines.append("model_transaction_policy { decoupled: true }")
    lines += [
        f'parameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}'
        for key, value in sorted(parameters.items())
    ]
    return "\n".join(lines) + "\n"


def _field(name: str, dtype: str, shape: Sequence[int | str], optional: bool) -> Field:
    dims = tuple(size if isinstance(size, int) else -1 for size in shape)
    return Field(name, TRITON_TYPES[dtype], dims or (1,), optional, scalar=not dims)


def _field_lines(side: str, field: Field) -> list[str]:
    lines = [
        f"{side} {{",
        f'  name: "{field.name}"',
        f"  data_type: {field.data_type}",
        f"  dims: [ {', '.join(map(str, field.dims))} ]",
    ]
    return [*lines, *(["  optional: true"] if field.optional else []), "}"]


def _type_of(bundle: Bundle, role: str, output: str) -> tuple[str, int]:
    """The dtype and rank of an output of a graph."""
    inside = bundle.manifest.graphs[role].outputs[output]
    graph = onnx.load_model_from_string(bundle.models[role]).graph
    (found,) = (item for item in graph.output if item.name == inside)
    tensor = found.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    names = {"FLOAT": "float32", "DOUBLE": "float64", "INT64": "int64", "INT32": "int32"}
    return names.get(kind, kind.lower()), len(tensor.shape.dim)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _readme(name: str, kind: str) -> str:
    package = "onnxruntime-gpu" if kind == "gpu" else "onnxruntime"
    image = "nvcr.io/nvidia/tritonserver:<release>-py3"
    return _README.format(name=name, package=package, image=image)


_README = """# Model repository: {name}

For NVIDIA Triton Inference Server with the Python backend. The server's Python needs the runtime
of `optimize` (numpy, {package}, pydantic, safetensors; no PyTorch), for prompts also its extra
`text`:

    docker run --rm -it -p 8000:8000 -p 8001:8001 -v $PWD:/models {image} bash
    pip install optimize {package}
    tritonserver --model-repository=/models

Requests are not joined into batches: what a request gets does not depend on who asks beside it.
Send several samples in one request, or raise `count` of `instance_group` in config.pbtxt.
The bundle's hashes are checked each time the model is loaded.
"""
