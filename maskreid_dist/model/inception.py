"""DGD's Inception trunk (Xiao et al., CVPR 2016), the three levels that MaskReID fuses.

Every convolution is conv -> batch normalisation -> ReLU with Xavier weights. An `a` block keeps the size
(four branches, the last an average pool), a `b` block halves it (three branches, the last a max pool that
passes its input through). Channel numbers below are those of width 1.0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVEL_CHANNELS = (64, 128, 256)  # branch width of inception_1*, 2*, 3*: low, middle, high


def scaled(channels: int, width: float) -> int:
    """Channel number at a width multiplier: a multiple of 4, at least 4."""
    return max(4, 4 * round(channels * width / 4))


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias (the normalisation has one), padded to keep the size at stride 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class InceptionA(nn.Module):
    """1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 -> 3x3 | average pool 3x3 -> 1x1, concatenated: 4 c channels."""

    def __init__(self, in_channels: int, branch: int) -> None:
        super().__init__()
        self.one = conv_bn_relu(in_channels, branch, 1)
        self.three = nn.Sequential(conv_bn_relu(in_channels, branch, 1), conv_bn_relu(branch, branch, 3))
        self.double_three = nn.Sequential(
            conv_bn_relu(in_channels, branch, 1),
            conv_bn_relu(branch, branch, 3),
            conv_bn_relu(branch, branch, 3),
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), conv_bn_relu(in_channels, branch, 1))
        self.out_channels = 4 * branch

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branches = (self.one, self.three, self.double_three, self.pool)
        return torch.cat([branch(x_BCHW) for branch in branches], dim=1)


class InceptionB(nn.Module):
    """1x1 -> 3x3 s2 | 1x1 -> 3x3 -> 3x3 s2 | max pool 3x3 s2 (ceil), concatenated: 2 c + input channels.
    With stride 1 in place of 2 it keeps the size.

    An odd side is padded before the max pool, so that all three branches have ceil(n / 2) rows and columns.
    At the paper's size that is DGD's pad (0, 1) of its last level, 18x7 -> 9x4, and no padding elsewhere.
    """

    def __init__(self, in_channels: int, branch: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.three = nn.Sequential(
            conv_bn_relu(in_channels, branch, 1), conv_bn_relu(branch, branch, 3, stride=stride)
        )
        self.double_three = nn.Sequential(
            conv_bn_relu(in_channels, branch, 1),
            conv_bn_relu(branch, branch, 3),
            conv_bn_relu(branch, branch, 3, stride=stride),
        )
        self.out_channels = 2 * branch + in_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        padding = (1, 1) if self.stride == 1 else (x_BCHW.shape[2] % 2, x_BCHW.shape[3] % 2)
        pooled = F.max_pool2d(x_BCHW, 3, stride=self.stride, padding=padding, ceil_mode=self.stride == 2)
        return torch.cat([self.three(x_BCHW), self.double_three(x_BCHW), pooled], dim=1)
