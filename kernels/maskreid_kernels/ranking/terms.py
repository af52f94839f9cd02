"""What the backends of the ranking loss share: its constants, and the statistics it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Negatives = Literal["all", "violating"]

# exp(|S| <= 1 twice, + margin) summed over any batch stays far from float32's end up to this margin.
BOUNDED_MARGIN = 16.0
# S + NEVER is below 0 for every |S| <= 1, and far from where exp becomes slow (it does at -inf on CPUs).
NEVER = -4.0


@dataclass(frozen=True)
class RankingTerms:
    """Constants of Eq. 5; see `ranking_loss`."""

    margin: float
    pull: float
    negatives: Negatives
    normalize: bool
    statistics: bool = False  # whether they are asked for; those that cost nothing may be made anyway

    @property
    def bounded(self) -> bool:
        """Whether exp(S - min S + margin) cannot overflow, so that no running maximum is needed."""
        return self.normalize and self.margin <= BOUNDED_MARGIN


@dataclass(frozen=True)
class RankingStatistics:
    """Of one global batch, the same on every rank; 0-d tensors on the embeddings' device, without gradient.

    floor: mean over valid anchors of log(1 + |B-|), the value that well-ranked negatives alone give; 0 for
    negatives="violating". active_negative_fraction: pairs (valid anchor, negative) inside the margin, over
    all such pairs. valid_anchors: int64 count. All are 0 when no anchor is valid.
    """

    NUMBERS: ClassVar[int] = 3

    floor: Tensor
    active_negative_fraction: Tensor
    valid_anchors: Tensor

    def packed(self) -> Tensor:
        """[3] float64."""
        return torch.stack(
            [self.floor.double(), self.active_negative_fraction.double(), self.valid_anchors.double()]
        )

    @classmethod
    def unpacked(cls, values_3: Tensor, dtype: torch.dtype) -> RankingStatistics:
        """From what `packed` made, for a loss of `dtype`."""
        return cls(values_3[0].to(dtype), values_3[1].to(dtype), values_3[2].long())


@torch.no_grad()
def ranking_statistics(
    valid_N: Tensor, negatives_N: Tensor, active_N: Tensor, terms: RankingTerms, dtype: torch.dtype
) -> RankingStatistics:
    """From per-anchor counts: valid_N bool, negatives_N and active_N (those inside the margin) any number
    dtype."""
    valid_anchors = valid_N.sum()
    weight_N = valid_N.double()
    negatives_N = negatives_N.double()
    floor = torch.log1p(negatives_N).mul(weight_N).sum() / valid_anchors.clamp(min=1)
    fraction = (active_N.double() * weight_N).sum() / (negatives_N * weight_N).sum().clamp(min=1)
    if terms.negatives == "violating":
        floor = torch.zeros_like(floor)
    return RankingStatistics(floor.to(dtype), fraction.to(dtype), valid_anchors)


def violations_(gap: Tensor, log_shift: Tensor | None, bounded: bool, inside: Tensor | None = None) -> Tensor:
    """In place: exp(gap - log_shift) where gap > 0, exactly 0 elsewhere. NaN stays NaN.

    inside: gap > 0, where the caller has it. Asked of the gap itself: the exponential of a gap above 0 may
    round to 1.
    """
    if bounded:
        if inside is None:
            inside = gap > 0
        gap.exp_().mul_(inside)
        return gap if log_shift is None else gap.mul_(torch.exp(-log_shift))
    torch.threshold_(gap, 0.0, -torch.inf)
    return (gap if log_shift is None else gap.sub_(log_shift)).exp_()
