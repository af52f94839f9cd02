"""The MaskReID network (Qi et al., arXiv 1804.03864, section 3 and Fig. 2).

Axes: B batch, C channels, H rows, W columns, D embedding features.
"""

from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskreid_dist.config import Fusing, Stream
from maskreid_dist.model.inception import LEVEL_CHANNELS, InceptionA, InceptionB, conv_bn_relu, scaled
from maskreid_dist.model.recompute import recomputed

STREAMS: tuple[Stream, ...] = get_args(Stream)
MEAN_COLOUR = (102.0, 102.0, 101.0)  # of the data the paper trains on, RGB, 0..255
STEM_CHANNELS = 32


class Output(NamedTuple):
    """`embedding_BD`: float32, L2-normalised rows. `logits_BC`: identity scores,
    or None without a classifier."""

    embedding_BD: Tensor
    logits_BC: Tensor | None


class Levels(NamedTuple):
    """Feature maps of the trunk; at width 1.0 and 144x56: 384x36x14, 768x18x7, 1536x9x4."""

    low_BCHW: Tensor
    middle_BCHW: Tensor
    high_BCHW: Tensor


def make_stream(stream: Stream, image_B3HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """Network input of one stream: float32 (B, 3, H, W), mean-subtracted, in units of 255.

    image_B3HW: uint8 RGB; mask_B1HW: uint8, 255 = person. Outside its mask the masked image holds the
    mean colour, which is 0 after the subtraction.
    """
    mean = torch.tensor(MEAN_COLOUR, device=image_B3HW.device).view(1, 3, 1, 1)
    x_B3HW = (image_B3HW.float() - mean) / 255.0
    if stream == "masked":
        x_B3HW = x_B3HW * (mask_B1HW.float() / 255.0)
    return x_B3HW


class Stem(nn.Module):
    """Three 3x3 convolutions and a 2x2 max pool: the part that streams do not share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            conv_bn_relu(3, channels, 3),
            conv_bn_relu(channels, channels, 3),
            conv_bn_relu(channels, channels, 3),
        )
        self.pool = nn.MaxPool2d(2, stride=2)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.convolutions(x_B3HW))
        return pooled


class SkippedFusing(nn.Module):
    """Low, middle and high features into one FC: the embedding before its L2 normalisation.

    `pool`: global average pooling of each level, concatenation (2688 at width 1.0), FC, BN.
    `conv`: low and middle first pass a 1x1 conv+BN+ReLU to the width of the middle level.
    `none`: the high level alone (the ablation without fusion).

    rows: each level is averaged within this many horizontal stripes, and the FC sees them all. The paper does
    not say how a level becomes a vector; 1, the default, is global average pooling.
    """

    def __init__(
        self, level_channels: tuple[int, int, int], embedding_dim: int, fusing: Fusing, rows: int
    ) -> None:
        super().__init__()
        low, middle, high = level_channels
        self.fusing = fusing
        self.rows = rows
        if fusing == "conv":
            self.reduce_low = conv_bn_relu(low, middle, 1)
            self.reduce_middle = conv_bn_relu(middle, middle, 1)
            low = middle
        fused = high if fusing == "none" else low + middle + high
        self.fc = nn.Linear(fused * rows, embedding_dim, bias=False)
        nn.init.xavier_uniform_(self.fc.weight)
        self.bn = nn.BatchNorm1d(embedding_dim)

    def forward(self, levels: Levels) -> Tensor:
        maps: list[Tensor] = [levels.high_BCHW]
        if self.fusing == "conv":
            maps = [self.reduce_low(levels.low_BCHW), self.reduce_middle(levels.middle_BCHW), *maps]
        elif self.fusing == "pool":
            maps = list(levels)
        pooled = torch.cat([F.adaptive_avg_pool2d(level, (self.rows, 1)).flatten(1) for level in maps], dim=1)
        fused: Tensor = self.bn(self.fc(pooled))
        return fused


class MaskReID(nn.Module):
    """Unshared stems, shared Inception trunk, skipped fusing layer, optional identity classifier.

    streams: which inputs, in order; each gets a stem of its own. width: multiplier of every channel number.
    classes: identities of the softmax head (`MaskReID_soft`; DGD's BN -> ReLU ->
    dropout -> classifier), 0 for none. recompute: stems and levels keep their inputs alone for the backward
    pass, which computes them again.
    """

    def __init__(
        self,
        *,
        streams: tuple[Stream, ...] = ("raw", "masked"),
        width: float = 1.0,
        fusing: Fusing = "pool",
        fusing_rows: int = 1,
        embedding_dim: int = 256,
        classes: int = 0,
        dropout: float = 0.5,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not streams or len(set(streams)) != len(streams):
            raise ValueError(f"streams must be one or more different names of {STREAMS}, not {streams}")
        self.streams = streams
        stem = scaled(STEM_CHANNELS, width)
        self.stems = nn.ModuleList(Stem(stem) for _ in streams)
        channels = stem * len(streams)
        levels: list[nn.Sequential] = []
        level_channels: list[int] = []
        for base in LEVEL_CHANNELS:
            a = InceptionA(channels, scaled(base, width))
            b = InceptionB(a.out_channels, scaled(base, width))
            levels.append(nn.Sequential(a, b))
            channels = b.out_channels
            level_channels.append(channels)
        self.low, self.middle, self.high = levels
        low, middle, high = level_channels
        self.fusing = SkippedFusing((low, middle, high), embedding_dim, fusing, fusing_rows)
        self.recompute = recompute
        self.classifier: nn.Module | None = None
        if classes:
            self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(embedding_dim, classes))

    def features(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Levels:
        """The three levels of a batch of uint8 images and masks; see `make_stream` for the inputs."""
        stems = [
            self._run(stem, make_stream(name, image_B3HW, mask_B1HW))
            for name, stem in zip(self.streams, self.stems, strict=True)
        ]
        low = self._run(self.low, torch.cat(stems, dim=1))
        middle = self._run(self.middle, low)
        return Levels(low, middle, self._run(self.high, middle))

    def _run(self, part: nn.Module, x_BCHW: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return recomputed(part, x_BCHW)
        y_BCHW: Tensor = part(x_BCHW)
        return y_BCHW

    def forward(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Output:
        """Embeddings and, with a classifier, identity scores, of uint8 images
        (B,3,H,W) and masks (B,1,H,W)."""
        fused_BD = self.fusing(self.features(image_B3HW, mask_B1HW))
        logits_BC = None if self.classifier is None else self.classifier(fused_BD)
        return Output(F.normalize(fused_BD.float(), dim=1), logits_BC)
