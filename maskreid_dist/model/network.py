"""The MaskReID network (Qi et al., arXiv 1804.03864, section 3 and Fig. 2).

Axes: B batch, C channels, H rows, W columns, D embedding features.
"""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskreid_dist.config import ModelConfig, Stream
from maskreid_dist.model.fusing import SkippedFusing
from maskreid_dist.model.inception import LEVEL_CHANNELS, InceptionA, InceptionB, conv_bn_relu, scaled
from maskreid_dist.model.recompute import recomputed

STREAMS: tuple[Stream, ...] = get_args(Stream)
MEAN_COLOUR = (102.0, 102.0, 101.0)  # of the data the paper trains on, RGB, 0..255
STEM_CHANNELS = 32
LEVELS = ("low", "middle", "high")


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


def make_stream(
    stream: Stream,
    image_B3HW: Tensor,
    mask_B1HW: Tensor,
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Tensor:
    """Network input of one stream: float32 (B, 3, H, W), mean-subtracted, in units of 255.

    image_B3HW: uint8 RGB; mask_B1HW: uint8, 255 = person. Outside its mask the masked image holds the
    mean colour, which is 0 after the subtraction. scale: a mean and deviation of RGB in units of 255 to
    normalise by, in place of the mean colour.
    """
    if scale is None:
        mean = torch.tensor(MEAN_COLOUR, device=image_B3HW.device).view(1, 3, 1, 1)
        x_B3HW = (image_B3HW.float() - mean) / 255.0
    else:
        mean, deviation = (torch.tensor(v, device=image_B3HW.device).view(1, 3, 1, 1) for v in scale)
        x_B3HW = (image_B3HW.float() / 255.0 - mean) / deviation
    if stream == "masked":
        x_B3HW = x_B3HW * (mask_B1HW.float() / 255.0)
    return x_B3HW


class Stem(nn.Module):
    """Three 3x3 convolutions and a 2x2 max pool: the part that streams do not share."""

    def __init__(self, channels: int, inputs: int = 3) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            conv_bn_relu(inputs, channels, 3),
            conv_bn_relu(channels, channels, 3),
            conv_bn_relu(channels, channels, 3),
        )
        self.pool = nn.MaxPool2d(2, stride=2)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.convolutions(x_B3HW))
        return pooled


class ReIDNetwork(nn.Module):
    """A trunk's levels -> skipped fusing layer -> embedding, and an optional identity classifier.

    `bn`: embedding and classifier (DGD's BN -> ReLU -> dropout -> classifier) see the normalised features.
    `bnneck` (Luo et al. 2019): while it trains the embedding is that of the features before batch
    normalisation, so the pair losses see these; the classifier has no bias.
    `with_mirror`: in eval mode an embedding is the mean of that of the image and that of its mirror image, to
    unit length again.
    """

    streams: tuple[Stream, ...]
    with_mirror: bool

    def make_head(
        self, channels: Sequence[int], names: Sequence[str], config: ModelConfig, classes: int
    ) -> None:
        """channels, names: of the levels that are fused; classes: 0 for no classifier."""
        self.neck = config.neck
        self.with_mirror = config.with_mirror
        self.fusing = SkippedFusing(
            channels,
            names,
            config.embedding_dim,
            fusing=config.fusing,
            rows=config.fusing_rows,
            pooling=config.pooling,
            neck=config.neck,
        )
        self.classifier: nn.Module | None = None
        if classes and config.neck == "bnneck":
            self.classifier = nn.Linear(config.embedding_dim, classes, bias=False)
            nn.init.normal_(self.classifier.weight, std=0.001)
        elif classes:
            self.classifier = nn.Sequential(
                nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(config.embedding_dim, classes)
            )

    def fused_levels(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Sequence[Tensor]:
        """Those of the trunk's feature maps that the fusing layer sees, (B, C, H, W) each."""
        raise NotImplementedError

    def stem_maps(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> dict[str, Tensor]:
        """By stream, what its own stem makes of it, (B, C, H, W)."""
        raise NotImplementedError

    def shown_maps(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> dict[str, Tensor]:
        """Feature maps to look at: the stems' by stream, of the fused levels the first, "low", and the last,
        "high"."""
        levels = self.fused_levels(image_B3HW, mask_B1HW)
        ends = {"low": levels[0], "high": levels[-1]}
        return {**self.stem_maps(image_B3HW, mask_B1HW), **ends}

    def forward(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Output:
        """Embeddings and, with a classifier, identity scores, of uint8 images
        (B,3,H,W) and masks (B,1,H,W)."""
        output = self._of_one_side(image_B3HW, mask_B1HW)
        if self.training or not self.with_mirror:
            return output
        mirrored = self._of_one_side(image_B3HW.flip(3), mask_B1HW.flip(3))
        return output._replace(embedding_BD=F.normalize(output.embedding_BD + mirrored.embedding_BD, dim=1))

    def _of_one_side(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Output:
        feature_BD, fused_BD = self.fusing(self.fused_levels(image_B3HW, mask_B1HW))
        logits_BC = None if self.classifier is None else self.classifier(fused_BD)
        embedding_BD = feature_BD if self.neck == "bnneck" and self.training else fused_BD
        return Output(F.normalize(embedding_BD.float(), dim=1), logits_BC)


class MaskReID(ReIDNetwork):
    """The paper's network: unshared stems, shared Inception trunk, skipped fusing layer.

    config: which inputs, in order (each gets a stem of its own), width (multiplier of every channel number),
    levels and what follows them. classes: identities of the softmax head (`MaskReID_soft`), 0 for none.
    recompute: stems and levels keep their inputs alone for the backward pass, which computes them again.
    """

    def __init__(self, config: ModelConfig, classes: int = 0, *, recompute: bool = False) -> None:
        super().__init__()
        self.streams = config.streams
        self.mask_channel = config.mask_input == "channel"
        stem = scaled(STEM_CHANNELS, config.width)
        inputs = 4 if self.mask_channel else 3
        self.stems = nn.ModuleList(Stem(stem, inputs) for _ in self.streams)
        channels = stem * len(self.streams)
        levels: list[nn.Sequential] = []
        level_channels: list[int] = []
        self.taken = sorted(number % len(LEVELS) for number in config.levels)
        for number, base in enumerate(LEVEL_CHANNELS):
            a = InceptionA(channels, scaled(base, config.width))
            stride = config.last_stride if number == self.taken[-1] else 2
            b = InceptionB(a.out_channels, scaled(base, config.width), stride)
            levels.append(nn.Sequential(a, b))
            channels = b.out_channels
            level_channels.append(channels)
        self.low, self.middle, self.high = levels
        fused = [level_channels[number] for number in self.taken]
        self.make_head(fused, [LEVELS[number] for number in self.taken], config, classes)
        self.recompute = recompute

    def features(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Levels:
        """The three levels of a batch of uint8 images and masks; see `make_stream` for the inputs."""
        stems = self.stem_maps(image_B3HW, mask_B1HW)
        low = self._run(self.low, torch.cat(list(stems.values()), dim=1))
        middle = self._run(self.middle, low)
        return Levels(low, middle, self._run(self.high, middle))

    def stem_maps(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> dict[str, Tensor]:
        stems: dict[str, Tensor] = {}
        for name, stem in zip(self.streams, self.stems, strict=True):
            x_BCHW = make_stream(name, image_B3HW, mask_B1HW)
            if self.mask_channel:
                x_BCHW = torch.cat([x_BCHW, mask_B1HW.float() / 255.0], dim=1)
            stems[name] = self._run(stem, x_BCHW)
        return stems

    def fused_levels(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Sequence[Tensor]:
        levels = self.features(image_B3HW, mask_B1HW)
        return [levels[number] for number in self.taken]

    def _run(self, part: nn.Module, x_BCHW: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return recomputed(part, x_BCHW)
        y_BCHW: Tensor = part(x_BCHW)
        return y_BCHW
