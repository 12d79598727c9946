"""Looks into an ONNX file without the onnx package: does it hold all of its data?

An ONNX tensor may say that its bytes lie in another file, by a path. A bundle's graphs are self-contained, so such a
tensor is damage or an attack, and the file is refused before any runtime could follow the path. The walk follows the
protobuf wire format (https://protobuf.dev/programming-guides/encoding/) through the fields of onnx.proto3 that can hold
tensors.
"""

from collections.abc import Iterator

_LENGTH_DELIMITED = 2
_MAX_DEPTH = 200  # messages inside each other: a loop in a loop takes four; real graphs have few
_MAX_FIELD = 1 << 29  # as the encoding has it
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # TensorProto

# message -> {field number: message of the field}
_HOLDERS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}


def has_external_data(model: bytes) -> bool:
    """Tell whether any tensor of a serialised ONNX model refers to another file.

    Raises:
        ValueError: the bytes are not a protobuf message, or one that is nested beyond reason.
    """
    return _walk(memoryview(model), "Model", 1)


def _walk(data: memoryview, message: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} messages inside each other")
    if message == "Tensor":
        return any(
            number in (_EXTERNAL_DATA, _DATA_LOCATION) and value not in (0, b"") for number, value in fields(data)
        )
    holders = _HOLDERS[message]
    return any(
        _walk(value, holders[number], depth + 1)
        for number, value in fields(data)
        if number in holders and isinstance(value, memoryview)
    )


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message: an int for a varint, else the raw bytes, in place.

    Raises:
        ValueError: the bytes are not a protobuf message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < _MAX_FIELD:  # readers in C++ drop the high bits, and would see another field
            raise ValueError(f"field number {number} at byte {at}")
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if length > len(data) - at:
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(data)}")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError(f"no number ends before byte {at}")
