"""The layers of a TFLite graph as torch modules, (batch, channels, height, width)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Module):
    """A convolution with TFLite's margins and activation."""

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

    @property
    def keeps_size(self) -> bool:
        """Whether the output's pixels are the input's, each made of those around it."""
        height, width = self.weight.shape[2:]
        around = self.padding or (width // 2, width // 2, height // 2, height // 2)
        centred = around == (width // 2, width // 2, height // 2, height // 2)
        return self.stride == (1, 1) and centred and height % 2 == width % 2 == 1

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


class Add(nn.Module):
    """The sum of two maps."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return _activated(x + y, self.activation)


class Enlarge(nn.Module):
    """Bilinear, by whole factors."""

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
