"""Writes an ONNX file without the package onnx: flattened pixels times a matrix, as protobuf spells it."""

import numpy as np


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor_type(name: str, sides: list[int | str]) -> bytes:
    """ValueInfoProto of a float tensor; a side with a name is free."""
    shape = b"".join(_field(1, _field(1, side) if isinstance(side, int) else _field(2, side)) for side in sides)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def linear_onnx(weight: np.ndarray, shape: tuple[int, int, int]) -> bytes:
    """`pixel_values` (batch, *shape) -> `image_embeds` (batch, D): flattened pixels times `weight` (pixels, D)."""
    flatten = _field(1, "pixel_values") + _field(2, "flat") + _field(4, "Flatten")
    product = _field(1, "flat") + _field(1, "weight") + _field(2, "image_embeds") + _field(4, "MatMul")
    sides = b"".join(_field(1, side) for side in weight.shape)
    held = sides + _field(2, 1) + _field(8, "weight") + _field(9, weight.astype("<f4").tobytes())
    graph = _field(1, flatten) + _field(1, product) + _field(2, "linear") + _field(5, held)
    graph += _field(11, _tensor_type("pixel_values", ["batch", *shape]))
    graph += _field(12, _tensor_type("image_embeds", ["batch", weight.shape[1]]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17))
