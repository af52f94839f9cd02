"""Reads a TFLite file: its operations, its constants, the names of its outputs.

Only what `tflite_network` can compute. A TFLite file is a FlatBuffer: a table starts with the distance back
to its vtable, which holds for each field its offset in the table, 0 for a field that has its default. The
field numbers are those of TFLite's schema (version 3).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.errors import UserError

# Numbers of TFLite's BuiltinOperator, ActivationFunctionType, TensorType and Padding.
OPERATIONS = {
    0: "ADD", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 14: "LOGISTIC", 17: "MAX_POOL_2D",
    22: "RESHAPE", 23: "RESIZE_BILINEAR", 34: "PAD",
}  # fmt: skip
ACTIVATIONS = {0: "none", 1: "relu", 3: "relu6"}
DTYPES = {0: "<f4", 1: "<f2", 2: "<i4"}
PADDINGS = {0: "same", 1: "valid"}
# Of an operation's options: field, format of struct, default.
_OPTIONS: dict[str, dict[str, tuple[int, str, int]]] = {
    "ADD": {"activation": (0, "b", 0)},
    "CONV_2D": {
        "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "activation": (3, "b", 0),
        "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1),
    },
    "DEPTHWISE_CONV_2D": {
        "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "multiplier": (3, "i", 0),
        "activation": (4, "b", 0), "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1),
    },
    "MAX_POOL_2D": {
        "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "filter_w": (3, "i", 0),
        "filter_h": (4, "i", 0), "activation": (5, "b", 0),
    },
    "RESIZE_BILINEAR": {"align_corners": (2, "b", 0), "half_pixel_centers": (3, "b", 0)},
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operation by its TFLite name; tensors are numbers in the graph. `options` are numbers as stored."""

    name: str
    inputs: tuple[int, ...]
    output: int
    options: Mapping[str, int]


@dataclass(frozen=True)
class Graph:
    """A graph of one input. Shapes are TFLite's: (1, height, width, channels)."""

    operations: tuple[Operation, ...]
    constants: Mapping[int, NDArray[Any]]
    shapes: Mapping[int, tuple[int, ...]]
    input: int
    outputs: Mapping[str, int]


def read_graph(data: bytes, where: str) -> Graph:
    """The graph in the bytes of the file `where`.

    Raises UserError: not a TFLite file, a torn one, operations or types that are not in the tables above.
    """
    try:
        if data[4:8] != b"TFL3":
            raise ValueError("it does not begin as one")
        return _graph(_Table(data, _unsigned(data, 0)))
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{where}: not a TFLite graph of a known kind ({error})") from None


def _graph(model: "_Table") -> Graph:
    codes = [max(code.number(0, "b"), code.number(3, "i")) for code in model.tables(1)]
    (graph,) = model.tables(2)
    buffers = model.tables(4)
    tensors = graph.tables(0)
    constants: dict[int, NDArray[Any]] = {}
    shapes = {}
    for number, tensor in enumerate(tensors):
        shapes[number] = tuple(tensor.vector(0, "<i4").tolist())
        content = buffers[tensor.number(2, "I")].vector(0, "u1")
        if len(content):
            constants[number] = np.frombuffer(content, DTYPES[tensor.number(1, "b")]).reshape(shapes[number])
    operations = []
    for one in graph.tables(3):
        name = OPERATIONS[codes[one.number(0, "I")]]
        (output,) = one.vector(2, "<i4").tolist()
        found = one.table(4) if name in _OPTIONS else None
        options = {
            option: found.number(field, form, default) if found else default
            for option, (field, form, default) in _OPTIONS.get(name, {}).items()
        }
        operations.append(Operation(name, tuple(one.vector(1, "<i4").tolist()), output, options))
    (source,) = graph.vector(1, "<i4").tolist()
    outputs = {tensors[number].text(3): number for number in graph.vector(2, "<i4").tolist()}
    return Graph(tuple(operations), constants, shapes, source, outputs)


def _unsigned(data: bytes, position: int) -> int:
    return int(struct.unpack_from("<I", data, position)[0])


class _Table:
    """A table of a FlatBuffer at `position` of the file."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self.vtable = position - struct.unpack_from("<i", data, position)[0]
        self.vtable_bytes = struct.unpack_from("<H", data, self.vtable)[0]

    def _field(self, field: int) -> int | None:
        place = 4 + 2 * field
        if place >= self.vtable_bytes:
            return None
        offset: int = struct.unpack_from("<H", self.data, self.vtable + place)[0]
        return self.position + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._field(field)
        return None if place is None else place + _unsigned(self.data, place)

    def number(self, field: int, form: str, default: int = 0) -> int:
        place = self._field(field)
        return default if place is None else int(struct.unpack_from(f"<{form}", self.data, place)[0])

    def table(self, field: int) -> "_Table | None":
        place = self._target(field)
        return None if place is None else _Table(self.data, place)

    def tables(self, field: int) -> list["_Table"]:
        start = self._target(field)
        if start is None:
            return []
        count = _unsigned(self.data, start)
        if 4 * count > len(self.data):
            raise ValueError("it is torn")
        places = [start + 4 + 4 * number for number in range(count)]
        return [_Table(self.data, place + _unsigned(self.data, place)) for place in places]

    def vector(self, field: int, dtype: str) -> NDArray[Any]:
        start = self._target(field)
        if start is None:
            return np.empty(0, dtype)
        return np.frombuffer(self.data, dtype, _unsigned(self.data, start), start + 4)

    def text(self, field: int) -> str:
        return self.vector(field, "u1").tobytes().decode()
