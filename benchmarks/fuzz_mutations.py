"""Damages inputs: bytes, JSON values and ONNX protobufs. The same generator gives the same damage.

Hypothesis is not used here: an input may kill the process that reads it, and must then be made
again from its number alone.
"""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import onnx

BYTE_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)
INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    64,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1.5, 1e308, "", "x", "../x", "/x",
    "batch", "latent", "float32", "\ud800", "é", "x" * 5000, [], {}, [[]], [1] * 2000,
    {"x": 1}, [None], "step", "onnx", "1.3", "9.9",
)  # fmt: skip
OPS = (
    "Add", "Mul", "MatMul", "Gemm", "Reshape", "Transpose", "Slice", "Gather", "Concat", "Split",
    "Expand", "Tile", "Range", "ConstantOfShape", "Pad", "Conv", "ConvTranspose", "MaxPool",
    "AveragePool", "Resize", "ScatterND", "ScatterElements", "GatherND", "GatherElements", "TopK",
    "OneHot", "CumSum", "NonZero", "Unique", "Where", "If", "Loop", "Scan", "Einsum", "ReduceSum",
    "LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization",
    "Softmax", "Attention", "RotaryEmbedding", "RMSNormalization", "LSTM", "GRU", "RNN", "DFT",
    "STFT", "Col2Im", "GridSample", "RoiAlign", "MaxUnpool", "NonMaxSuppression", "Cast",
    "BitShift", "Div", "Mod", "Pow", "Trilu", "EyeLike", "DepthToSpace", "SpaceToDepth",
    "QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
    "RandomNormal", "Multinomial", "Bernoulli", "StringSplit", "RegexFullMatch", "TfIdfVectorizer",
    "SequenceAt", "SequenceEmpty", "SequenceInsert", "ConcatFromSequence", "SplitToSequence",
    "Optional", "OptionalGetElement", "ImageDecoder", "GroupQueryAttention", "MultiHeadAttention",
    "MatMulNBits", "QMoE", "SkipLayerNormalization", "FusedMatMul", "Identity", "Constant", "Size",
)  # fmt: skip


def damaged_bytes(raw: bytes, random: Random) -> bytes:
    """One to three changes: a bit, a byte, a span cut, doubled or moved, or the end cut off."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        place = random.randrange(len(data))
        span = min(len(data) - place, random.choice((1, 2, 4, 8, 64)))
        way = random.randrange(7)
        if way == 0:
            data[place] ^= 1 << random.randrange(8)
        elif way == 1:
            data[place] = random.choice(BYTE_EXTREMES)
        elif way == 2:
            del data[place : place + span]
        elif way == 3:
            data[place:place] = data[place : place + span]
        elif way == 4:
            del data[place:]
        elif way == 5:
            other = random.randrange(len(data))
            data[place : place + span] = data[other : other + span]
        else:
            number = random.choice(INTEGERS) % 2**64
            data[place : place + 8] = number.to_bytes(8, "little")
    return bytes(data)


def damaged_json(value: Any, random: Random) -> bytes:
    """One to three values replaced, removed, renamed or copied from elsewhere in the document."""
    document = {"": copy.deepcopy(value)}
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_json_places(document))
        parent, key = random.choice(places)
        way = random.randrange(6)
        if way == 0:
            other, name = random.choice(places)
            parent[key] = copy.deepcopy(other[name])
        elif way == 1 and key != "":
            del parent[key]
        elif way == 2 and isinstance(parent, dict) and key != "":
            parent[random.choice(("x", "", key + "x", "name", "loop"))] = parent.pop(key)
        elif way == 3 and isinstance(parent[key], list):
            parent[key] = copy.deepcopy(parent[key]) * random.choice((2, 50))
        elif way == 4:
            for _ in range(random.choice((3, 20, 60))):
                parent[key] = [parent[key]]
        else:
            parent[key] = copy.deepcopy(random.choice(JSON_VALUES))
    text = json.dumps(document.get(""), ensure_ascii=random.random() < 0.9)
    return text.encode(errors="surrogatepass")


def _json_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _json_places(value[key])


def damaged_graph(raw: bytes, random: Random) -> bytes:
    """A model with one to three fields changed, each to another value of its kind; still protobuf.

    Every tenth input is damaged as bytes instead.
    """
    if random.random() < 0.1:
        return damaged_bytes(raw, random)
    model = onnx.ModelProto.FromString(raw)
    for _ in range(random.choice((1, 1, 2, 3))):
        _change_field(model, random)
    return bytes(model.SerializeToString())


def _change_field(model: Any, random: Random) -> None:
    places = [place for place in _fields(model, random) if place[1].name != "metadata_props"]
    message, field = random.choice(places)
    current = getattr(message, field.name)
    if field.is_repeated:
        if not len(current):
            return
        index = random.randrange(len(current))
        way = random.randrange(4)
        if way == 0:
            del current[index]
        elif way == 1 and field.message_type is not None:
            current.add().CopyFrom(current[index])
        elif field.message_type is not None:
            _copy_or_swap(current, index, places, field, random)
        else:
            current[index] = _value(field, current[index], model, random)
    elif field.message_type is not None or random.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, current, model, random))


def _copy_or_swap(current: Any, index: int, places: Any, field: Any, random: Random) -> None:
    """Another message of the same type, from anywhere in the model, takes the place of this one."""
    same = [
        item
        for message, other in places
        if other.message_type is field.message_type and other.is_repeated
        for item in getattr(message, other.name)
    ]
    chosen = copy.deepcopy(random.choice(same))
    current[index].CopyFrom(chosen)


def _value(field: Any, current: Any, model: Any, random: Random) -> Any:
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice(FLOATS)
    if field.enum_type is not None:
        return random.choice(field.enum_type.values).number
    if field.cpp_type != field.CPPTYPE_STRING:
        narrow = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32)
        chosen = random.choice((*INTEGERS, current + 1, current - 1, random.randrange(30)))
        low, high = (-(2**31), 2**31 - 1) if narrow else (-(2**63), 2**63 - 1)
        return min(max(chosen, low), high)
    if field.type == field.TYPE_BYTES:
        return damaged_bytes(current, random)
    if field.name == "op_type":
        return random.choice(OPS)
    if field.name == "domain":
        return random.choice(("", "com.microsoft", "ai.onnx", "ai.onnx.ml", "evil"))
    node = random.choice(model.graph.node) if model.graph.node else None
    names = ["", "x", "../x", *(node.input if node else ()), *(node.output if node else ())]
    names += [attribute.name for attribute in (node.attribute if node else ())]
    return random.choice(names)


def _fields(message: Any, random: Random) -> Iterator[tuple[Any, Any]]:
    """(message, field) of those that are set, at any depth; of long lists eight items."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            items = [value] if not field.is_repeated else value
            for item in items if len(items) <= 8 else random.sample(list(items), 8):
                yield from _fields(item, random)
