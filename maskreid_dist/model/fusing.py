"""From the levels of a trunk to one vector: pooling, and the skipped fusing layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskreid_dist.config import Fusing, Neck, Pooling
from maskreid_dist.model.inception import conv_bn_relu

GEM_POWER = 3.0  # at the start (Radenovic et al. 2018, arXiv 1711.02512)
GEM_FLOOR = 1e-6  # of what is raised to it


class Stripes(nn.Module):
    """(B, C, H, W) to (B, C * rows): the mean of each of `rows` horizontal stripes.

    gem: the generalised mean (mean of x^p)^(1/p), whose p is learnt; values below 1e-6 count as that, so
    that of a trunk whose features may be negative it sees the positive ones.
    """

    def __init__(self, rows: int, pooling: Pooling) -> None:
        super().__init__()
        self.rows = rows
        self.power = nn.Parameter(torch.full((1,), GEM_POWER)) if pooling == "gem" else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.power is None:
            return F.adaptive_avg_pool2d(x_BCHW, (self.rows, 1)).flatten(1)
        raised = x_BCHW.float().clamp(min=GEM_FLOOR).pow(self.power)
        return F.adaptive_avg_pool2d(raised, (self.rows, 1)).pow(1 / self.power).flatten(1)


class SkippedFusing(nn.Module):
    """Low, middle and high features into one FC: the embedding before its L2 normalisation.

    `pool`: each level's mean, concatenation (2688 at width 1.0), FC, BN.
    `conv`: all but the last first pass a 1x1 conv+BN+ReLU to the width of the last but one.
    `none`: the last level alone (the ablation without fusion).

    rows: each level is averaged within this many horizontal stripes, and the FC sees them all. The paper does
    not say how a level becomes a vector; 1, the default, is global average pooling. names: of the levels, for
    those of the 1x1 convolutions.
    """

    def __init__(
        self,
        channels: Sequence[int],
        names: Sequence[str],
        embedding_dim: int,
        *,
        fusing: Fusing,
        rows: int,
        pooling: Pooling,
        neck: Neck,
    ) -> None:
        super().__init__()
        self.fusing = fusing
        widths = list(channels)
        self.reduced: tuple[str, ...] = ()
        if fusing == "conv" and len(widths) > 1:
            common = widths[-2]
            self.reduced = tuple(f"reduce_{name}" for name in names[:-1])
            for name, width in zip(self.reduced, widths, strict=False):
                self.add_module(name, conv_bn_relu(width, common, 1))
            widths = [common] * len(self.reduced) + widths[-1:]
        if fusing == "none":
            widths = widths[-1:]
        self.pools = nn.ModuleList(Stripes(rows, pooling) for _ in widths)
        self.fc = nn.Linear(sum(widths) * rows, embedding_dim, bias=False)
        nn.init.xavier_uniform_(self.fc.weight)
        self.bn = nn.BatchNorm1d(embedding_dim)
        if neck == "bnneck":  # has no shift (Luo et al. 2019, arXiv 1903.07071)
            self.bn.bias.requires_grad_(False)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, D) before and after the batch normalisation."""
        maps = list(levels[-1:] if self.fusing == "none" else levels)
        for number, name in enumerate(self.reduced):
            maps[number] = self.get_submodule(name)(maps[number])
        pooled = [pool(level) for pool, level in zip(self.pools, maps, strict=True)]
        feature_BD: Tensor = self.fc(torch.cat(pooled, dim=1))
        fused_BD: Tensor = self.bn(feature_BD)
        return feature_BD, fused_BD
