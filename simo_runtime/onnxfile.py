"""What an ONNX file says of itself, read without the onnx package and without loading weights.

Only what must be known before an engine is let near the file: its operators, its inputs and
outputs, and where its weights are said to lie. The form is protobuf's: a message is a row of
fields, each a number, a wire type and a value (https://protobuf.dev/programming-guides/encoding);
the numbers of the fields are those of onnx.proto3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from simo_runtime.errors import BundleError

GRAPH_BYTES = 64 << 20  # weights lie beside the graph, so that it is small
GRAPH_NODES = 20_000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = 1  # TensorProto.data_location
# Element types that inputs and outputs of our graphs have; the numbers are TensorProto's.
ELEMENTS = {1: "float32", 2: "uint8", 10: "float16", 16: "bfloat16"}

Field: TypeAlias = tuple[int, int | bytes]


@dataclass(frozen=True)
class Value:
    """An input or an output; a dimension is a size, or the name of one that is not fixed."""

    name: str
    element: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class External:
    """Where a tensor's numbers are said to lie."""

    tensor: str
    location: str
    offset: int
    length: int | None  # None: to the end of the file


@dataclass(frozen=True)
class OnnxFile:
    """One graph, as far as it must be known beforehand."""

    operators: frozenset[tuple[str, str]]  # domain, operator; the standard's domain is ""
    functions: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    external: tuple[External, ...]


def read_onnx(path: Path) -> OnnxFile:
    """Read a file; BundleError names it if it is too large, or no ONNX graph."""
    size = path.stat().st_size
    if size > GRAPH_BYTES:
        raise BundleError(
            f"{path}: {size} bytes; a graph whose weights lie beside it has at most {GRAPH_BYTES}"
        )
    try:
        return _model(path.read_bytes())
    except (ValueError, IndexError) as error:
        raise BundleError(f"{path}: cannot be read as an ONNX graph: {error}") from error


def _model(data: bytes) -> OnnxFile:
    fields = list(_fields(data))
    graph = list(_fields(_message(fields, 7)))
    nodes = [list(_fields(one)) for one in _messages(graph, 1)]
    if len(nodes) > GRAPH_NODES:
        raise ValueError(f"{len(nodes)} nodes; at most {GRAPH_NODES} are read")
    if not nodes:
        raise ValueError("there are no nodes in it")
    tensors = [*_messages(graph, 5), *(one for node in nodes for one in _inside(node))]
    if any(True for _ in _messages(graph, 15)):
        raise ValueError("sparse weights are not read")
    return OnnxFile(
        operators=frozenset((_domain(node), _text(node, 4)) for node in nodes),
        functions=len(list(_messages(fields, 25))),
        inputs=tuple(_value(one) for one in _messages(graph, 11)),
        outputs=tuple(_value(one) for one in _messages(graph, 12)),
        external=tuple(found for one in tensors for found in _external(one)),
    )


def _domain(node: list[Field]) -> str:
    name = _text(node, 7)
    return "" if name == "ai.onnx" else name


def _inside(node: list[Field]) -> Iterator[bytes]:
    """Give the tensors in a node's attributes; graphs within graphs are refused."""
    for attribute in _messages(node, 5):
        fields = list(_fields(attribute))
        if any(number in (6, 11, 22, 23) for number, _ in fields):
            raise ValueError(f"{_text(node, 4)}: graphs and sparse tensors in nodes are not read")
        yield from _messages(fields, 5)
        yield from _messages(fields, 10)


def _external(tensor: bytes) -> Iterator[External]:
    fields = list(_fields(tensor))
    entries = [list(_fields(one)) for one in _messages(fields, 13)]
    where = [value for number, value in fields if number == 14]
    if not entries and EXTERNAL not in where:
        return
    said = {_text(entry, 1): _text(entry, 2) for entry in entries}
    name = _text(fields, 8)
    if len(said) < len(entries) or "location" not in said:
        raise ValueError(f"tensor {name!r} does not say once where it lies")
    length = said.get("length")
    yield External(
        tensor=name,
        location=said["location"],
        offset=_count(said.get("offset", "0")),
        length=None if length is None else _count(length),
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no number of bytes")
    return int(text)


def _value(data: bytes) -> Value:
    fields = list(_fields(data))
    tensor = list(_fields(_message(list(_fields(_message(fields, 2))), 1)))
    kinds = [value for number, value in tensor if number == 1 and isinstance(value, int)]
    sizes = list(_fields(_message(tensor, 2)))
    element = ELEMENTS.get(kinds[-1], f"of type {kinds[-1]}") if kinds else "of no type"
    return Value(_text(fields, 1), element, tuple(_size(one) for one in _messages(sizes, 1)))


def _size(data: bytes) -> int | str:
    found: int | str = "?"
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            found = value
        elif number == 2 and isinstance(value, bytes):
            found = value.decode()
    return found


def _messages(fields: list[Field], wanted: int) -> Iterator[bytes]:
    return (value for number, value in fields if number == wanted and isinstance(value, bytes))


def _message(fields: list[Field], wanted: int) -> bytes:
    """Give a message that stands once; one in parts is put together, as protobuf does."""
    return b"".join(_messages(fields, wanted))


def _text(fields: list[Field], wanted: int) -> str:
    found = list(_messages(fields, wanted))
    return found[-1].decode() if found else ""


def _fields(data: bytes) -> Iterator[Field]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if number == 0 or at + size > len(data):
            raise ValueError(f"field {number} at byte {at} is past the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")
