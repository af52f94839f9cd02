"""How many anchors of a batch have something to learn: a backward that is nearly empty is no measure of a
loss step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ACTIVE_FROM = 0.5  # a promise is measured on batches with at least this share of active anchors
LEAST_PUSH = 0.01  # of a loss that weighs every negative: the share of its gradient that they get together
# As many anchors are sampled as make this many pairs, 256 at least.
SAMPLED_PAIRS = 1 << 25


@dataclass(frozen=True)
class Sample:
    """S_aN similarities of some anchors to all rows; positive_aN, negative_aN bool, without anchors that lack
    either."""

    S_aN: Tensor
    positive_aN: Tensor
    negative_aN: Tensor

    @property
    def least_a1(self) -> Tensor:
        """The least similar positive."""
        return self.S_aN.masked_fill(~self.positive_aN, torch.inf).amin(1, keepdim=True)


def sample(x_ND: Tensor, y_N: Tensor) -> Sample:
    """Evenly spread anchors of unit rows."""
    wanted = min(max(SAMPLED_PAIRS // len(x_ND), 256), len(x_ND))
    anchors = torch.linspace(0, len(x_ND) - 1, wanted, dtype=torch.float64).long().to(x_ND.device)
    same = y_N[anchors, None] == y_N
    positive = same.clone()
    positive[torch.arange(len(anchors), device=x_ND.device), anchors] = False
    valid = positive.any(1) & ~same.all(1)
    return Sample(x_ND[anchors[valid]] @ x_ND.t(), positive[valid], ~same[valid])


def active_share(kernel: str, sampled: Sample, constants: dict[str, Any]) -> float:
    """Share of the sampled anchors that push negatives away; `constants`: the loss's keywords.

    With a margin: a negative is inside it. In the log-sum-exp family, where every negative has a weight:
    dL/dA, the negatives' part of the gradient, is at least LEAST_PUSH. 0 without a valid anchor.
    """
    if not len(sampled.S_aN):
        return 0.0
    if kernel in ("batch_hard", "ranking"):
        active = _within_margin(kernel, sampled, constants["margin"])
    else:
        active = _push(kernel, sampled, constants) >= LEAST_PUSH
    return float(active.float().mean())


def _within_margin(kernel: str, sampled: Sample, margin: float) -> Tensor:
    nearest_a1 = sampled.S_aN.masked_fill(~sampled.negative_aN, -torch.inf).amax(1, keepdim=True)
    if kernel == "ranking":
        return nearest_a1 - sampled.least_a1 + margin > 0
    toward, away = ((2 - 2 * S).clamp(min=0).sqrt() for S in (sampled.least_a1, nearest_a1))
    return toward - away + margin > 0


def _push(kernel: str, sampled: Sample, constants: dict[str, Any]) -> Tensor:
    """dL/dA of every anchor."""
    S, positive = sampled.S_aN, sampled.positive_aN
    if kernel == "circle":
        margin, gamma = constants["margin"], constants["gamma"]
        away = gamma * (S + margin).relu() * (S - margin)
        toward = -gamma * (1 + margin - S).relu() * (S - 1 + margin)
    else:
        away = S * constants.get("scale", 1 / constants.get("temperature", 1.0))
        toward = -away
    A_a1 = away.masked_fill(~sampled.negative_aN, -torch.inf).logsumexp(1, keepdim=True)
    if kernel == "n_pair":
        return (torch.sigmoid(A_a1 + toward) * positive).sum(1) / positive.sum(1)
    if kernel == "supervised_contrastive":
        of_positives = away.masked_fill(~positive, -torch.inf).logsumexp(1, keepdim=True)
        return torch.sigmoid(A_a1 - of_positives)
    C_a1 = toward.masked_fill(~positive, -torch.inf).logsumexp(1, keepdim=True)
    return torch.sigmoid(A_a1 + C_a1)


def margin_of(share: float, sampled: Sample) -> float:
    """The margin that `share` of the sampled negatives lie inside."""
    values = (sampled.S_aN - sampled.least_a1)[sampled.negative_aN]
    # S - least + margin > 0 for the top `share` of the gaps.
    rank = max(min(round(len(values) * share), len(values)), 1)
    return float(-values.kthvalue(len(values) - rank + 1).values) + 1e-6


def share_inside(margin: float, sampled: Sample) -> float:
    """Share of the sampled negatives inside the margin."""
    return float(((sampled.S_aN - sampled.least_a1)[sampled.negative_aN] + margin > 0).float().mean())
