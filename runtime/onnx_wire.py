"""Reads and rewrites the protobuf bytes of an ONNX model, without the onnx package.

Only the fields the runtime needs are understood; all others are passed through as they are.
Numbers below are field numbers of onnx.proto.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimize.runtime.errors import CorruptBundle

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

MODEL_GRAPH, MODEL_OPSETS, MODEL_FUNCTIONS, MODEL_TRAINING = 7, 8, 25, 20
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 11, 12, 15


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, its value, and the bytes it takes, tag included."""

    number: int
    value: int | memoryview
    raw: memoryview

    def data(self) -> memoryview:
        """The value of a length-delimited field."""
        if isinstance(self.value, int):
            raise CorruptBundle(f"found a number in field {self.number}, expected bytes")
        return self.value

    def text(self) -> str:
        """The value of a string field."""
        try:
            return bytes(self.data()).decode()
        except UnicodeDecodeError as error:
            raise CorruptBundle(f"found text that is not UTF-8 in field {self.number}") from error

    def whole(self) -> int:
        """The value of an integer field."""
        if not isinstance(self.value, int):
            raise CorruptBundle(f"found bytes in field {self.number}, expected a number")
        return self.value


@dataclass(frozen=True)
class Node:
    """What matters of an ONNX node; `numbers` has its attributes of one or more integers."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    subgraphs: tuple[memoryview, ...]
    tensors: tuple[memoryview, ...]
    sparse: bool


@dataclass(frozen=True)
class Tensor:
    """What matters of an ONNX tensor; `external` is its external data entries, or None.

    `numbers` are those of an int64 tensor that does not keep them in `raw_data`.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    raw_data: memoryview | None
    numbers: tuple[int, ...]
    external: dict[str, str] | None
    raw: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in order.

    Raises:
        CorruptBundle: the bytes are no protobuf message.
    """
    position, end = 0, len(message)
    while position < end:
        start = position
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == _VARINT:
            value, position = _varint(message, position)
        elif kind == _BYTES:
            length, position = _varint(message, position)
            value, position = message[position : position + length], position + length
        elif kind in (_FIXED64, _FIXED32):
            width = 8 if kind == _FIXED64 else 4
            value = int.from_bytes(message[position : position + width], "little")
            position += width
        else:
            raise CorruptBundle(f"found wire type {kind}, expected a protobuf message")
        if position > end or number == 0:
            raise CorruptBundle("found a field that ends after its message")
        yield Field(number, value, message[start:position])


def read_node(message: memoryview) -> Node:
    """A NodeProto."""
    name = op_type = domain = ""
    inputs: list[str] = []
    outputs: list[str] = []
    numbers: dict[str, tuple[int, ...]] = {}
    subgraphs: list[memoryview] = []
    tensors: list[memoryview] = []
    sparse = False
    for item in fields(message):
        if item.number == 1:
            inputs.append(item.text())
        elif item.number == 2:
            outputs.append(item.text())
        elif item.number == 3:
            name = item.text()
        elif item.number == 4:
            op_type = item.text()
        elif item.number == 7:
            domain = item.text()
        elif item.number == 5:
            key, values = "", []
            for part in fields(item.data()):
                if part.number == 1:
                    key = part.text()
                elif part.number in (3, 8):
                    values += integers(part)
                elif part.number in (6, 11):
                    subgraphs.append(part.data())
                elif part.number in (5, 10):
                    tensors.append(part.data())
                sparse = sparse or part.number in (22, 23)
            if key in numbers:
                raise CorruptBundle(f"found attribute {key!r} twice at node {name!r}")
            numbers[key] = tuple(values)
    return Node(
        name,
        op_type,
        domain,
        tuple(inputs),
        tuple(outputs),
        numbers,
        tuple(subgraphs),
        tuple(tensors),
        sparse,
    )


def integers(item: Field) -> list[int]:
    """The numbers of one int64 field, alone or packed."""
    found = [item.value] if isinstance(item.value, int) else _packed(item.value)
    return [number - 2**64 if number >= 2**63 else number for number in found]


def read_tensor(message: memoryview) -> Tensor:
    """A TensorProto."""
    name, data_type, location = "", 0, 0
    dims: list[int] = []
    raw_data: memoryview | None = None
    numbers: list[int] = []
    external: dict[str, str] = {}
    for item in fields(message):
        if item.number == 1:
            if isinstance(item.value, int):
                dims.append(item.value)
            else:
                dims.extend(_packed(item.value))
        elif item.number == 2:
            data_type = item.whole()
        elif item.number == 7:
            numbers += integers(item)
        elif item.number == 8:
            name = item.text()
        elif item.number == 9:
            raw_data = item.data()
        elif item.number == 13:
            entry = {part.number: part.text() for part in fields(item.data())}
            key = entry.get(1, "")
            if key in external:
                raise CorruptBundle(f"found external data key {key!r} twice in tensor {name!r}")
            external[key] = entry.get(2, "")
        elif item.number == 14:
            location = item.whole()
    given = external if location == 1 or external else None
    return Tensor(name, data_type, tuple(dims), raw_data, tuple(numbers), given, message)


def value_info(name: str, data_type: int, dims: Sequence[int]) -> bytes:
    """A ValueInfoProto of a tensor with a fixed shape."""
    shape = b"".join(_message(1, _number(1, size)) for size in dims)
    tensor = _number(1, data_type) + _message(2, shape)
    return _message(1, name.encode()) + _message(2, _message(1, tensor))


def replace_initializers(model: memoryview, as_inputs: Sequence[Tensor]) -> bytes:
    """The model with these initializers turned into graph inputs of the same name."""
    moved = {tensor.name for tensor in as_inputs}
    parts: list[bytes | memoryview] = []
    for item in fields(model):
        if item.number != MODEL_GRAPH:
            parts.append(item.raw)
            continue
        inner: list[bytes | memoryview] = [
            part.raw
            for part in fields(item.data())
            if part.number != GRAPH_INITIALIZER or read_tensor(part.data()).name not in moved
        ]
        inner += [_message(GRAPH_INPUT, value_info(t.name, t.data_type, t.dims)) for t in as_inputs]
        parts.append(_message(MODEL_GRAPH, b"".join(inner)))
    return b"".join(parts)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise CorruptBundle("found a protobuf number that does not end")
        byte = message[position]
        result |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return result, position
        shift += 7


def _packed(message: memoryview) -> Iterator[int]:
    position = 0
    while position < len(message):
        number, position = _varint(message, position)
        yield number


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, number: int) -> bytes:
    return _encoded(field << 3 | _VARINT) + _encoded(number)


def _message(field: int, data: bytes) -> bytes:
    return _encoded(field << 3 | _BYTES) + _encoded(len(data)) + data
