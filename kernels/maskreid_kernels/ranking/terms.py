"""What both backends of the ranking loss share: its constants, and the statistics it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    floor: Tensor
    active_negative_fraction: Tensor
    valid_anchors: Tensor


@torch.no_grad()
def ranking_statistics(
    valid_N: Tensor, negatives_N: Tensor, active_N: Tensor, terms: RankingTerms, dtype: torch.dtype
) -> RankingStatistics:
    """From per-anchor counts: valid_N bool, negatives_N and active_N (those inside the margin) any number dtype."""
    valid_anchors = valid_N.sum()
    weight_N = valid_N.double()
    negatives_N = negatives_N.double()
    floor = torch.log1p(negatives_N).mul(weight_N).sum() / valid_anchors.clamp(min=1)
    fraction = (active_N.double() * weight_N).sum() / (negatives_N * weight_N).sum().clamp(min=1)
    if terms.negatives == "violating":
        floor = torch.zeros_like(floor)
    return RankingStatistics(floor.to(dtype), fraction.to(dtype), valid_anchors)


def violations_(gap: Tensor, log_shift: Tensor | None, bounded: bool) -> Tensor:
    """In place: exp(gap - log_shift) where gap > 0, exactly 0 elsewhere. NaN stays NaN."""
    if bounded:
        torch.threshold_(gap.exp_(), 1.0, 0.0)
        return gap if log_shift is None else gap.mul_(torch.exp(-log_shift))
    torch.threshold_(gap, 0.0, -torch.inf)
    return (gap if log_shift is None else gap.sub_(log_shift)).exp_()
