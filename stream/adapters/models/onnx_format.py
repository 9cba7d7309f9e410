"""What an ONNX file may hold, checked before the runtime sees it: no data outside the file, no operators of strangers.

A tensor may name a file of this machine as its data, and the runtime would read it; an operator of an unknown domain asks
for code that somebody would have to bring. Both are refused by name. Read is the protobuf wire format itself (field numbers
of onnx.proto, ONNX 1.18), because workers do without the onnx package; what is no such format is refused too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # the standard's, and those that onnxruntime brings itself
DEPTH_MAX = 40  # graphs in attributes of nodes of graphs …
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = 1


class NotAllowed(ValueError):
    """The file is no model that is run here; the message says what is in the way."""


class _Kind(NamedTuple):
    """Of a message: which fields hold messages, and which one names the message."""

    parts: dict[int, str]
    name: int = 0


_KINDS = {
    "model": _Kind({7: "graph", 8: "opset", 20: "training", 25: "function"}),
    "training": _Kind({1: "graph", 2: "graph"}),
    "function": _Kind({7: "node", 9: "opset", 11: "attribute"}, 1),
    "graph": _Kind({1: "node", 5: "tensor", 15: "sparse"}, 2),
    "node": _Kind({5: "attribute"}, 4),
    "attribute": _Kind({5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}, 1),
    "sparse": _Kind({1: "tensor", 2: "tensor"}),
    "tensor": _Kind({}, 8),
    "opset": _Kind({}, 0),
}
_DOMAIN_FIELD = {"opset": 1, "node": 7, "function": 10}
_DATA_LOCATION, _EXTERNAL_DATA = 14, 13


def check(model: bytes) -> None:
    """Returns for a model that may be run. Raises `NotAllowed`; nothing else, whatever the bytes are.

    >>> check(b"no model")
    Traceback (most recent call last):
    stream.adapters.models.onnx_format.NotAllowed: not an ONNX model: a field of wire type 6 at byte 0
    """
    _walk(memoryview(model), 0, len(model), "model", 0)


def _walk(data: memoryview, start: int, end: int, kind: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise NotAllowed(f"not run here: graphs are nested deeper than {DEPTH_MAX}")
    known, outside, name = _KINDS[kind], False, ""
    for number, wire, value, first, last in _fields(data, start, end):
        if wire == BYTES and number in known.parts:
            _walk(data, first, last, known.parts[number], depth + 1)
        elif wire == BYTES and number == known.name:
            name = _text(data, first, last)
        elif wire == BYTES and number == _DOMAIN_FIELD.get(kind, 0):
            domain = _text(data, first, last)
            if domain not in DOMAINS:
                raise NotAllowed(f"not run here: operators of the domain {domain!r}; known are {', '.join(DOMAINS[1:])}")
        elif kind == "tensor":
            outside |= (number == _DATA_LOCATION and value == EXTERNAL) or number == _EXTERNAL_DATA
    if outside:
        raise NotAllowed(f"not run here: tensor {name!r} has its data outside the file; export it with its data inside")


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field, wire type, value of a varint, first and last byte of a payload) of each field of a message."""
    at = start
    while at < end:
        begun = at
        tag, at = _varint(data, at, end)
        number, wire, value, size = tag >> 3, tag & 7, 0, 0
        if wire == VARINT:
            value, at = _varint(data, at, end)
        elif wire == BYTES:
            size, at = _varint(data, at, end)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise NotAllowed(f"not an ONNX model: a field of wire type {wire} at byte {begun}")
        if number == 0 or size > end - at:
            raise NotAllowed(f"not an ONNX model: a field that does not end at byte {begun}")
        yield number, wire, value, at, at + size
        at += size


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise NotAllowed(f"not an ONNX model: a number that does not end at byte {at}")


def _text(data: memoryview, first: int, last: int) -> str:
    return bytes(data[first : min(last, first + 200)]).decode(errors="replace")
