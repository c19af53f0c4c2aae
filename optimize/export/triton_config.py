"""The config.pbtxt of a bundle as a model of NVIDIA Triton Inference Server.

Every tensor is declared with all its dimensions and `max_batch_size` is 0: a request is one run of
the loop, and its noise, its sizes and the fields that are single numbers belong to that run alone.
Triton's batches would put requests of other seeds and numbers into one run, and draw the noise of a
sample by its place among strangers, so `dynamic_batching` is never declared. Requests bring their
own batch, and several run at once on one copy of the weights.

    labels int64 [batch]   →   input { name: "labels" data_type: TYPE_INT64 dims: [ -1 ] }
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optimize.ir.errors import RecipeError
from optimize.runtime.bundle import Bundle
from optimize.runtime.loop import Signature, appended_results, calls
from optimize.runtime.manifest import Manifest
from optimize.runtime.onnx_preflight import ONNX_TYPES
from optimize.runtime.request import field_shape

SEED, PROMPT, IMAGE, TEXT = "seed", "prompt", "image", "text"
ANY = -1
"""Triton's word for a size that a request decides."""

Device = Literal["cpu", "gpu"]

# bfloat16 travels as float32, in requests and results alike: numpy lacks it.
_TYPES = {
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_FP32",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
_DTYPES = {number: name for name, number in ONNX_TYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """An input or output as Triton declares it; -1 is a size that the request decides."""

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False

    @staticmethod
    def of(name: str, dtype: str, shape: Sequence[int | str], optional: bool = False) -> "Tensor":
        """A tensor of ours; a single number becomes a tensor of one, as Triton has no others."""
        sizes = tuple(size if isinstance(size, int) else ANY for size in shape)
        return Tensor(name, _TYPES[dtype], sizes or (1,), optional)


def inputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """What a request may have: fields, noise, seed, named sizes, prompts and pictures."""
    signature, prompting = manifest.signature, manifest.prompting
    made = set()
    if prompting is not None:
        made = {prompting.tokens, prompting.lengths}
        made |= set() if prompting.image is None else {prompting.image.field}
    found = [
        Tensor.of(item.name, item.dtype, item.shape, item.default is not None or item.name in made)
        for item in signature.inputs
    ]
    if prompting is not None:
        found.append(Tensor(PROMPT, "TYPE_STRING", (ANY,), optional=True))
        if prompting.image is not None:
            shape = (ANY, ANY, ANY, prompting.image.channels)
            found.append(Tensor(IMAGE, "TYPE_UINT8", shape, optional=True))
    noise = manifest.loop.noise
    found += [Tensor.of(item.name, item.dtype, field_shape(item), True) for item in noise]
    found.append(Tensor(SEED, "TYPE_UINT64", (1,), optional=True))
    found += [Tensor(name, "TYPE_INT64", (1,), True) for name in unseen_sizes(signature)]
    return _unique(found, "request field")


def unseen_sizes(signature: Signature) -> tuple[str, ...]:
    """The named sizes that no field without a default shows, so that a request must name them."""
    seen = {size for item in signature.inputs if item.default is None for size in item.shape}
    return tuple(name for name in signature.dimensions if name not in seen)


def outputs(bundle: Bundle) -> tuple[Tensor, ...]:
    """What comes back when the loop has ended: the results, and the texts of generated tokens."""
    manifest = bundle.manifest
    slots = {slot.name: slot for slot in manifest.loop.slots}
    found = []
    for name in manifest.signature.outputs:
        if name in manifest.loop.results:
            slot = slots[manifest.loop.results[name]]
            found.append(Tensor.of(name, slot.dtype, slot.shape))
            continue
        dtype, part, ragged = _part(bundle, name)
        after = part[2:] if ragged else part[1:]
        found.append(Tensor.of(name, dtype, (*part[:1], ANY, *after)))
    return _unique([*found, *_text(manifest)], "result")


def streamed(bundle: Bundle) -> tuple[Tensor, ...]:
    """What comes back step by step: the part of the result that grows, or pieces of text.

    Raises:
        RecipeError: no result grows.
    """
    grows = appended_results(bundle.manifest.loop)
    if not grows:
        raise RecipeError(
            "stream: found no result growing step by step in the bundle, expected one, such as the "
            "tokens of a language model; leave --stream away"
        )
    dtype, part, _ = _part(bundle, grows[0])
    return _unique([Tensor.of(grows[0], dtype, part), *_text(bundle.manifest)], "result")


def config_text(
    name: str,
    takes: Sequence[Tensor],
    gives: Sequence[Tensor],
    *,
    device: Device,
    instances: int,
    stream: bool,
    parameters: Mapping[str, str],
) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the model, and of its folder.
        takes, gives: inputs and outputs.
        device: where its instances run.
        instances: processes of the server that hold the bundle, for each GPU or on the CPU.
        stream: several responses to one request.
        parameters: what model.py reads.
    """
    lines = [f'name: "{name}"', 'backend: "python"', "max_batch_size: 0"]
    for field, tensors in (("input", takes), ("output", gives)):
        blocks = ",\n".join(_tensor(tensor) for tensor in tensors)
        lines.append(f"{field} [\n{blocks}\n]")
    lines.append(f"instance_group [\n  {{ count: {instances} kind: KIND_{device.upper()} }}\n]")
    if stream:
        lines.append("model_transaction_policy { decoupled: true }")
    lines += [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    optional = " optional: true" if tensor.optional else ""
    return f'  {{ name: "{tensor.name}" data_type: {tensor.type} dims: [ {dims} ]{optional} }}'


def _text(manifest: Manifest) -> list[Tensor]:
    return [] if manifest.prompting is None else [Tensor(TEXT, "TYPE_STRING", (ANY,))]


def _part(bundle: Bundle, result: str) -> tuple[str, tuple[int | str, ...], bool]:
    """Dtype and shape of what a call appends to a result; whether the samples' parts differ."""
    import onnx

    for call in calls(bundle.manifest.loop.body):
        for output, to in call.outputs.items():
            if to.append != result:
                continue
            graph = onnx.load_model_from_string(bundle.models[call.graph]).graph
            called = bundle.manifest.graphs[call.graph].outputs[output]
            tensor = next(item for item in graph.output if item.name == called).type.tensor_type
            return _DTYPES[tensor.elem_type], tuple(_sizes(tensor)), to.counts is not None
    raise RecipeError(f"result {result!r}: found nothing in the loop that makes it; export again")


def _sizes(tensor: Any) -> Iterator[int | str]:
    for dimension in tensor.shape.dim:
        yield dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param


def _unique(tensors: Sequence[Tensor], what: str) -> tuple[Tensor, ...]:
    names = [tensor.name for tensor in tensors]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            f"{what} {twice[0]!r}: found two of this name, one of them what the server adds; "
            "expected one; rename yours and export again"
        )
    return tuple(tensors)
