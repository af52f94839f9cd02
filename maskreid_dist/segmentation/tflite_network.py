"""A convolutional TFLite graph as a torch module: batches, any device, any input size that its strides allow.

Tensors are torch's, (batch, channels, height, width). float16 weights become float32, as TFLite's own
runner has them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskreid_dist.errors import UserError
from maskreid_dist.segmentation.tflite import ACTIVATIONS, PADDINGS, Graph, Operation


class TfliteNetwork(nn.Module):
    """Computes the named outputs of a graph, and nothing that they do not need.

    Raises UserError: an operation in a form that is not known here, or no such output.
    """

    def __init__(self, graph: Graph, outputs: Sequence[str], where: str) -> None:
        super().__init__()
        try:
            self.outputs = [graph.outputs[name] for name in outputs]
            operations, weights, margins = _computed(graph, self.outputs)
            self.steps = nn.ModuleList(_module(one, graph, weights, margins) for one in operations)
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"{where}: not a graph that can be computed here ({error})") from None
        self.input = graph.input
        # A margin is added by the convolution that follows it. Weights are in the modules.
        self.wiring = [
            (_sources(one, {number: source for number, (source, _) in margins.items()}), one.output)
            for one in operations
        ]
        self.last_use = {number: step for step, (sources, _) in enumerate(self.wiring) for number in sources}

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) float32 to the outputs, (B, C, H, W), or (B, N) where the graph flattens them."""
        tensors = {self.input: images}
        for step, (module, (sources, output)) in enumerate(zip(self.steps, self.wiring, strict=True)):
            tensors[output] = module(*(tensors[number] for number in sources))
            for number in sources:
                if self.last_use[number] == step and number not in self.outputs:
                    tensors.pop(number, None)
        return [tensors[number] for number in self.outputs]


Margins = Mapping[int, tuple[int, tuple[int, int, int, int]]]  # of a PAD's output: what is padded, and how


def _computed(graph: Graph, outputs: Sequence[int]) -> tuple[list[Operation], dict[int, Tensor], Margins]:
    """The operations that the outputs need, in order; their weights as float32; the PADs among them."""
    needed = set(outputs)
    kept: list[Operation] = []
    for operation in reversed(graph.operations):
        if operation.output in needed:
            kept.insert(0, operation)
            needed |= set(operation.inputs)
    weights = {n: torch.from_numpy(c.astype(np.float32)) for n, c in graph.constants.items() if n in needed}
    margins: dict[int, tuple[int, tuple[int, int, int, int]]] = {}
    rest = []
    for operation in kept:
        if operation.name == "DEQUANTIZE":
            weights[operation.output] = weights[operation.inputs[0]]
        elif operation.name == "PAD":
            around = graph.constants[operation.inputs[1]]
            if around[0].any() or around[3].any():
                raise ValueError("PAD of something else than height and width")
            (top, bottom), (left, right) = around[1].tolist(), around[2].tolist()
            margins[operation.output] = (operation.inputs[0], (left, right, top, bottom))
        else:
            rest.append(operation)
    return rest, weights, margins


def _sources(operation: Operation, padded: Mapping[int, int]) -> tuple[int, ...]:
    """The tensors that a module is given: an ADD has two, of the others the rest are weights and shapes."""
    return (
        operation.inputs
        if operation.name == "ADD"
        else (padded.get(operation.inputs[0], operation.inputs[0]),)
    )


def _module(operation: Operation, graph: Graph, weights: Mapping[int, Tensor], margins: Margins) -> nn.Module:
    options = operation.options
    activation = ACTIVATIONS[options.get("activation", 0)]
    padded = [number for number in operation.inputs if number in margins]
    if operation.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        if (options["dilation_h"], options["dilation_w"]) != (1, 1) or options.get("multiplier", 1) != 1:
            raise ValueError(f"{operation.name} with dilation or several filters a channel")
        same = PADDINGS[options["padding"]] == "same"
        if padded and same:
            raise ValueError("PAD before a convolution that pads")
        depthwise = operation.name == "DEPTHWISE_CONV_2D"
        return _Convolution(
            # TFLite's are (out, height, width, in), and (1, height, width, channels).
            weights[operation.inputs[1]].permute(*((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))),
            weights[operation.inputs[2]],
            (options["stride_h"], options["stride_w"]),
            None if same else margins.get(operation.inputs[0], (0, (0, 0, 0, 0)))[1],
            activation,
            depthwise=depthwise,
        )
    if padded:
        raise ValueError(f"PAD before {operation.name}")
    if operation.name == "ADD":
        return _Add(activation)
    if operation.name == "RESIZE_BILINEAR":
        if options["align_corners"] or not options["half_pixel_centers"]:
            raise ValueError("RESIZE_BILINEAR with other than half-pixel centres")
        (height, width), (_, old_height, old_width, _) = (
            graph.constants[operation.inputs[1]].tolist(),
            graph.shapes[operation.inputs[0]],
        )
        if height % old_height or width % old_width:
            raise ValueError("RESIZE_BILINEAR by other than a whole factor")
        return _Enlarge(height // old_height, width // old_width)
    if operation.name == "MAX_POOL_2D":
        if PADDINGS[options["padding"]] == "same" or activation != "none":
            raise ValueError("MAX_POOL_2D with padding or activation")
        return nn.MaxPool2d(
            (options["filter_h"], options["filter_w"]), (options["stride_h"], options["stride_w"])
        )
    if operation.name == "LOGISTIC":
        return nn.Sigmoid()
    if operation.name == "RESHAPE" and len(graph.shapes[operation.output]) == 2:
        return nn.Flatten()  # of 1 x 1 pixels: the order of the axes does not matter
    raise ValueError(f"{operation.name} to {graph.shapes[operation.output]}")


class _Convolution(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int] | None,
        activation: str,
        *,
        depthwise: bool,
    ) -> None:
        """padding: left, right, top, bottom; None is TFLite's "same", which depends on the input's size."""
        super().__init__()
        # To one channel: channel by channel and then summed takes 0.4 of the time on a CPU.
        self.summed = not depthwise and weight.shape[0] == 1
        if self.summed:
            weight, depthwise = weight.transpose(0, 1), True
        form = torch.contiguous_format if depthwise else torch.channels_last
        self.register_buffer("weight", weight.contiguous(memory_format=form))
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.activation = stride, padding, activation
        self.groups = weight.shape[0] if depthwise else 1

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.padding or self._same(x)
        if (left, top) == (right, bottom):
            around = (top, left)
        else:
            x, around = F.pad(x, (left, right, top, bottom)), (0, 0)
        bias = None if self.summed else self.bias
        at_once = x.device.type == "cpu" and not torch.compiler.is_compiling()  # no graph to export
        if at_once and torch.backends.mkldnn.is_available():
            # conv2d leaves few channels to a slower program: 5 times the time for 8 to 8 channels.
            y = torch.mkldnn_convolution(x, self.weight, bias, around, self.stride, (1, 1), self.groups)
        else:
            y = F.conv2d(x, self.weight, bias, self.stride, around, 1, self.groups)
        return _activated(y.sum(1, keepdim=True).add_(self.bias) if self.summed else y, self.activation)

    def _same(self, x: Tensor) -> tuple[int, int, int, int]:
        """Margins for ceil(size / stride) outputs, the larger half behind."""
        found: list[int] = []
        for axis, stride in ((3, self.stride[1]), (2, self.stride[0])):
            size, filter_size = x.shape[axis], self.weight.shape[axis]
            total = max((-(-size // stride) - 1) * stride + filter_size - size, 0)
            found += (total // 2, total - total // 2)
        left, right, top, bottom = found
        return left, right, top, bottom


class _Add(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return _activated(x + y, self.activation)


class _Enlarge(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2] * self.rows, x.shape[3] * self.columns)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _activated(fresh: Tensor, activation: str) -> Tensor:
    """In place."""
    if activation == "relu6":
        return fresh.clamp_(0, 6)
    return fresh.relu_() if activation == "relu" else fresh
