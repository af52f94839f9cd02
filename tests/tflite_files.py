"""Small TFLite files made here, in the pose network's form, and what they compute in NumPy."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = {
    "ADD": 0, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "DEQUANTIZE": 6, "LOGISTIC": 14, "MAX_POOL_2D": 17,
    "RESHAPE": 22, "RESIZE_BILINEAR": 23, "PAD": 34,
}  # fmt: skip
OPTION_TYPES = {
    "CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "MAX_POOL_2D": 5, "ADD": 11, "RESIZE_BILINEAR": 15,
}  # fmt: skip
SAME, VALID = 0, 1
NONE, RELU6 = 0, 3
Child = Callable[[bytearray], int]
Field = tuple[str, int] | Child | None


class GraphFile:
    """Collects tensors and operations; `data` is the file. Weights are stored as float16, as the published
    file's are."""

    def __init__(self) -> None:
        self.tensors: list[tuple[str, tuple[int, ...], NDArray[Any] | None]] = []
        self.operations: list[tuple[str, list[int], int, list[tuple[str, int]]]] = []
        self.outputs: list[int] = []
        self.input = self.tensor("input_1", (1, 256, 256, 3))

    def tensor(self, name: str, shape: tuple[int, ...], value: NDArray[Any] | None = None) -> int:
        self.tensors.append((name, shape, value))
        return len(self.tensors) - 1

    def constant(self, value: NDArray[Any]) -> int:
        return self.tensor("c", value.shape, value)

    def weight(self, value: NDArray[Any]) -> int:
        half = self.constant(value.astype("<f2"))
        return self.add("DEQUANTIZE", [half], value.shape)

    def add(
        self,
        name: str,
        inputs: list[int],
        shape: tuple[int, ...],
        *options: tuple[str, int],
        called: str = "t",
    ) -> int:
        output = self.tensor(called, shape)
        self.operations.append((name, inputs, output, list(options)))
        return output

    def data(self) -> bytes:
        names = sorted({name for name, *_ in self.operations})
        values = [value for *_, value in self.tensors if value is not None]
        numbers = iter(range(1, len(values) + 1))
        tensors = [
            _table(
                _vector("i", shape), ("b", _type_of(value)),
                ("I", next(numbers) if value is not None else 0), _text(name),
            )
            for name, shape, value in self.tensors
        ]  # fmt: skip
        operations = [
            _table(
                ("I", names.index(name)), _vector("i", inputs), _vector("i", [output]),
                ("b", OPTION_TYPES.get(name, 0)), _table(*options) if options else None,
            )
            for name, inputs, output, options in self.operations
        ]  # fmt: skip
        graph = _table(
            _tables(tensors), _vector("i", [self.input]), _vector("i", self.outputs), _tables(operations)
        )
        codes = [_table(("b", CODES[name]), None, ("i", 1), ("i", CODES[name])) for name in names]
        buffers = [_table(), *(_table(_vector("B", list(v.tobytes()), align=16)) for v in values)]
        file = bytearray(b"\0\0\0\0TFL3")
        struct.pack_into(
            "<I", file, 0,
            _table(("I", 3), _tables(codes), _tables([graph]), _text("own"), _tables(buffers))(file),
        )  # fmt: skip
        return bytes(file)


def _type_of(value: NDArray[Any] | None) -> int:
    return 0 if value is None else {"<f4": 0, "<f2": 1, "<i4": 2}[value.dtype.str]


def _table(*fields: Field) -> Child:
    """Writes the table, then its children, and returns where the table is."""

    def write(file: bytearray) -> int:
        file += bytes((-len(file) - 4 - 2 * len(fields)) % 4)
        vtable = len(file)
        position = vtable + 4 + 2 * len(fields)
        places = [position + 4 + 4 * number for number in range(len(fields))]
        offsets = [p - position if f is not None else 0 for p, f in zip(places, fields, strict=True)]
        file += struct.pack(
            f"<HH{len(fields)}H", 4 + 2 * len(fields), 4 + 4 * len(fields), *offsets
        ) + struct.pack("<i", position - vtable)
        file += bytes(4 * len(fields))
        for place, field in zip(places, fields, strict=True):
            if isinstance(field, tuple):
                struct.pack_into(f"<{field[0]}", file, place, field[1])
            elif field is not None:
                struct.pack_into("<I", file, place, field(file) - place)
        return position

    return write


def _vector(form: str, values: Sequence[int], align: int = 4) -> Child:
    def write(file: bytearray) -> int:
        file += bytes((-len(file) - 4) % align)
        file += struct.pack(f"<I{len(values)}{form}", len(values), *values)
        return len(file) - 4 - len(values) * struct.calcsize(form)

    return write


def _text(text: str) -> Child:
    def write(file: bytearray) -> int:
        start = _vector("B", list(text.encode()))(file)
        file += b"\0"
        return start

    return write


def _tables(children: Sequence[Child]) -> Child:
    def write(file: bytearray) -> int:
        start = _vector("I", [0] * len(children))(file)
        for number, child in enumerate(children):
            place = start + 4 + 4 * number
            struct.pack_into("<I", file, place, child(file) - place)
        return start

    return write


def conv(padding: int, stride: int, activation: int) -> list[tuple[str, int]]:
    return [("b", padding), ("i", stride), ("i", stride), ("b", activation), ("i", 1), ("i", 1)]


def depthwise(padding: int, stride: int, activation: int) -> list[tuple[str, int]]:
    return [("b", padding), ("i", stride), ("i", stride), ("i", 1), ("b", activation), ("i", 1), ("i", 1)]


def pose_like(seed: int = 0) -> tuple[bytes, dict[str, NDArray[np.float64]]]:
    """A file with all operations of the pose network, of 8 channels, and its weights."""
    random = np.random.default_rng(seed)
    weights = {
        name: random.normal(0, scale, shape).astype("<f2").astype(np.float64)
        for name, shape, scale in (
            ("first", (8, 3, 3, 3), 0.5), ("first_bias", (8,), 0.5), ("deep", (1, 3, 3, 8), 0.5),
            ("deep_bias", (8,), 0.5), ("point", (8, 1, 1, 8), 0.5), ("point_bias", (8,), 0.5),
            ("mask", (1, 3, 3, 8), 0.3), ("mask_bias", (1,), 0.5), ("half", (1, 5, 5, 8), 0.3),
            ("half_bias", (8,), 0.5), ("head", (195, 2, 2, 8), 0.5), ("head_bias", (195,), 0.5),
        )
    }  # fmt: skip
    file = GraphFile()
    w = {name: file.weight(value) for name, value in weights.items()}
    around = file.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], "<i4"))
    padded = file.add("PAD", [file.input, around], (1, 258, 258, 3))
    low = file.add("CONV_2D", [padded, w["first"], w["first_bias"]], (1, 128, 128, 8), *conv(VALID, 2, RELU6))
    deep = file.add(
        "DEPTHWISE_CONV_2D", [low, w["deep"], w["deep_bias"]], (1, 128, 128, 8), *depthwise(SAME, 1, RELU6)
    )
    point = file.add("CONV_2D", [deep, w["point"], w["point_bias"]], (1, 128, 128, 8), *conv(SAME, 1, NONE))
    both = file.add("ADD", [low, point], (1, 128, 128, 8), ("b", RELU6))
    size = file.constant(np.array([256, 256], "<i4"))
    large = file.add(
        "RESIZE_BILINEAR", [both, size], (1, 256, 256, 8), ("i", 0), ("i", 0), ("b", 0), ("b", 1)
    )
    mask = file.add(
        "CONV_2D",
        [large, w["mask"], w["mask_bias"]],
        (1, 256, 256, 1),
        *conv(SAME, 1, NONE),
        called="Identity_2",
    )
    x, side = (
        file.add(
            "DEPTHWISE_CONV_2D", [both, w["half"], w["half_bias"]], (1, 64, 64, 8), *depthwise(SAME, 2, NONE)
        ),
        64,
    )
    while side > 2:
        side //= 2
        pool = [("b", VALID), ("i", 2), ("i", 2), ("i", 2), ("i", 2), ("b", NONE)]
        x = file.add("MAX_POOL_2D", [x], (1, side, side, 8), *pool)
    head = file.add("CONV_2D", [x, w["head"], w["head_bias"]], (1, 1, 1, 195), *conv(VALID, 1, NONE))
    flat = file.add("RESHAPE", [head, file.constant(np.array([1, 195], "<i4"))], (1, 195), called="Identity")
    sure = file.add("LOGISTIC", [head], (1, 1, 1, 195), called="Identity_1")
    file.outputs = [flat, sure, mask]
    return file.data(), weights


def pose_like_outputs(
    image: NDArray[np.float64], weights: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mask logits (H, W) and, of 256 x 256 pixels, the head's (195,), of an (H, W, 3) image, in float64."""
    low = np.clip(_convolved(image, weights["first"], 2, (1, 1)) + weights["first_bias"], 0, 6)
    deep = np.clip(_by_channel(low, weights["deep"], 1, (1, 1)) + weights["deep_bias"], 0, 6)
    both = np.clip(low + _convolved(deep, weights["point"], 1, (0, 0)) + weights["point_bias"], 0, 6)
    large = _doubled(_doubled(both).transpose(1, 0, 2)).transpose(1, 0, 2)
    mask = _convolved(large, weights["mask"], 1, (1, 1)) + weights["mask_bias"]
    x = _by_channel(both, weights["half"], 2, (1, 2)) + weights["half_bias"]
    while len(x) > 2:
        x = x.reshape(len(x) // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
    head = np.einsum("hwc,ohwc->o", x, weights["head"]) + weights["head_bias"] if len(x) == 2 else np.empty(0)
    return mask[..., 0], head


def _windows(x: NDArray[np.float64], size: int, stride: int, margin: tuple[int, int]) -> NDArray[np.float64]:
    padded = np.pad(x, (margin, margin, (0, 0)))
    found: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1))
    return found[::stride, ::stride]  # (H, W, C, size, size)


def _convolved(
    x: NDArray[np.float64], weight: NDArray[np.float64], stride: int, margin: tuple[int, int]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum(
        "hwcij,oijc->hwo", _windows(x, weight.shape[1], stride, margin), weight, optimize=True
    )
    return found


def _by_channel(
    x: NDArray[np.float64], weight: NDArray[np.float64], stride: int, margin: tuple[int, int]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum(
        "hwcij,ijc->hwc", _windows(x, weight.shape[1], stride, margin), weight[0], optimize=True
    )
    return found


def _doubled(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as many rows; pixel k lies at (k + 0.5) / 2 - 0.5 of the old ones."""
    place = np.clip((np.arange(2 * len(x)) + 0.5) / 2 - 0.5, 0, len(x) - 1)
    first = np.floor(place).astype(int)
    share = (place - first)[:, None, None]
    found: NDArray[np.float64] = x[first] * (1 - share) + x[np.minimum(first + 1, len(x) - 1)] * share
    return found


def plain_pose(landmark_bias: NDArray[np.float64] | None = None) -> bytes:
    """The mask is where the image is bright (logit 40 x mean - 20); the landmarks are constant."""
    file = GraphFile()
    point = file.weight(np.full((1, 1, 1, 3), 40 / 3))
    mask = file.add(
        "CONV_2D", [file.input, point, file.weight(np.array([-20.0]))], (1, 256, 256, 1),
        *conv(SAME, 1, NONE), called="Identity_2",
    )  # fmt: skip
    bias = np.zeros(195) if landmark_bias is None else landmark_bias
    head = file.add(
        "CONV_2D", [file.input, file.weight(np.zeros((195, 1, 1, 3))), file.weight(bias)],
        (1, 256, 256, 195), *conv(VALID, 1, NONE),
    )  # fmt: skip
    pool = [("b", VALID), ("i", 256), ("i", 256), ("i", 256), ("i", 256), ("b", NONE)]
    one = file.add("MAX_POOL_2D", [head], (1, 1, 1, 195), *pool)
    flat = file.add("RESHAPE", [one, file.constant(np.array([1, 195], "<i4"))], (1, 195), called="Identity")
    file.outputs = [flat, mask]
    return file.data()
