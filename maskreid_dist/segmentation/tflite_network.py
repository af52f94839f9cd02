"""A convolutional TFLite graph as a torch module: batches, any device, any input size that its strides allow.

Tensors are torch's, (batch, channels, height, width). float16 weights become float32, as TFLite's own
runner has them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from maskreid_dist.errors import UserError
from maskreid_dist.segmentation.tflite import ACTIVATIONS, PADDINGS, Graph, Operation
from maskreid_dist.segmentation.tflite_layers import Add, Convolution, Enlarge
from maskreid_dist.segmentation.tflite_window import Window, compute_window, first_windowed


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
        maps = self._computed(images, len(self.wiring))
        return [maps[number] for number in self.outputs]

    def windows(self, images: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """(B, C, H, W) float32 to each image's window of the one output, (1, C, rows, columns): `forward`'s
        values, up to rounding. Large maps are computed in the windows alone, once for images of the same
        window; always of the whole batch, so that an image's values do not depend on the others' windows."""
        steps = list(self.steps)
        first = first_windowed(steps)
        maps = self._computed(images, first)
        found = {
            window: compute_window(steps[first:], self.wiring[first:], maps, self.outputs[0], window)
            for window in dict.fromkeys(windows)
        }
        return [found[window][number : number + 1] for number, window in enumerate(windows)]

    def _computed(self, images: Tensor, steps: int) -> dict[int, Tensor]:
        """What the first `steps` steps leave for those after them, and the outputs among it."""
        maps = {self.input: images}
        for step, (module, (sources, output)) in enumerate(zip(self.steps, self.wiring, strict=True)):
            if step == steps:
                break
            maps[output] = module(*(maps[number] for number in sources))
            for number in sources:
                if self.last_use[number] == step and number not in self.outputs:
                    maps.pop(number, None)
        return maps


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
        return Convolution(
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
        return Add(activation)
    if operation.name == "RESIZE_BILINEAR":
        if options["align_corners"] or not options["half_pixel_centers"]:
            raise ValueError("RESIZE_BILINEAR with other than half-pixel centres")
        (height, width), (_, old_height, old_width, _) = (
            graph.constants[operation.inputs[1]].tolist(),
            graph.shapes[operation.inputs[0]],
        )
        if height % old_height or width % old_width:
            raise ValueError("RESIZE_BILINEAR by other than a whole factor")
        return Enlarge(height // old_height, width // old_width)
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
