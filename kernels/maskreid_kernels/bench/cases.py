"""The batches that losses are measured on: identities of K images, and a stated share of negatives in the margin."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The margin is solved on as many anchors as make this many pairs, on 256 at least.
SAMPLED_PAIRS = 1 << 25


@dataclass(frozen=True)
class Case:
    """One shape. `violators`: share of (anchor, negative) pairs inside the ranking loss's margin; None where a loss has none.

    `ranks`: processes that share the N rows equally, so that each computes M = N / ranks anchors by N candidates.
    """

    kernel: str
    rows: int
    columns: int
    images: int = 4
    violators: float | None = None
    ranks: int = 1
    dtype: str = "float32"


@dataclass(frozen=True)
class CaseData:
    """x_ND unit rows, y_N labels in random order, and the margin that gives the share of violators."""

    x_ND: Tensor
    y_N: Tensor
    margin: float
    violators: float


def make_case(case: Case, device: torch.device, seed: int = 0) -> CaseData:
    """Rows scattered around a centre per identity, as a half-trained network's are."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(case.rows) // case.images
    labels = labels[torch.randperm(case.rows, generator=generator)]
    centres = torch.randn(int(labels.max()) + 1, case.columns, generator=generator)
    x_ND = F.normalize(centres[labels] + torch.randn(case.rows, case.columns, generator=generator), dim=1)
    margin = margin_for(x_ND, labels, case.violators) if case.violators is not None else 0.15
    measured = share_of_violators(x_ND, labels, margin)
    dtype = getattr(torch, case.dtype)
    return CaseData(x_ND.to(device, dtype), labels.to(device), margin, measured)


def margin_for(x_ND: Tensor, y_N: Tensor, share: float) -> float:
    """The margin that `share` of the negatives of sampled anchors lie inside."""
    gap, negative = _sampled_gaps(x_ND, y_N)
    values = gap[negative]
    # S - least + margin > 0 for the top `share` of the gaps.
    rank = max(min(round(len(values) * share), len(values)), 1)
    return float(-values.kthvalue(len(values) - rank + 1).values) + 1e-6


def share_of_violators(x_ND: Tensor, y_N: Tensor, margin: float) -> float:
    """Share of the sampled anchors' negatives inside the margin."""
    gap, negative = _sampled_gaps(x_ND, y_N)
    return float((gap[negative] + margin > 0).float().mean())


def _sampled_gaps(x_ND: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    anchors = torch.linspace(0, len(x_ND) - 1, min(max(SAMPLED_PAIRS // len(x_ND), 256), len(x_ND))).long()
    S = x_ND[anchors] @ x_ND.t()
    same = y_N[anchors, None] == y_N
    positive = same.clone()
    positive[torch.arange(len(anchors)), anchors] = False
    least = S.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    return S - least, ~same & positive.any(1, keepdim=True)
