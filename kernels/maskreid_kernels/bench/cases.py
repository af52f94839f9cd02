"""The batches that losses are measured on: identities of K images, and a stated share of negatives in the
margin."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activity import active_share, margin_of, sample, share_inside

# Noise beside a centre of length 1, from the tightest identity to the widest. Batch-hard's are spread until
# its hardest distances overlap: with equal noise of 1, at D = 2048, next to no anchor would have a negative
# inside the margin.
NOISE = {"batch_hard": (0.7, 2.0)}
PLAIN_NOISE = (1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One shape. `violators`: share of (anchor, negative) pairs inside the ranking loss's margin; None where
    a loss has none.

    `ranks`: processes that share the N rows equally, so that each computes M = N / ranks anchors by N
    candidates.
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
    """x_ND unit rows, y_N labels in random order, and the margin that gives the share of violators.

    `violators` is that share as measured, `active` the share of anchors that push a negative away
    (activity.py).
    """

    x_ND: Tensor
    y_N: Tensor
    margin: float
    violators: float
    active: float


def constants(case: Case, margin: float) -> dict[str, Any]:
    """The loss's keywords, the same for every provider; `margin` is the ranking loss's."""
    return {
        "ranking": {"margin": margin},
        "batch_hard": {"margin": 0.3},
        "n_pair": {"scale": 10.0},
        "all_pairs": {"scale": 10.0},
        "circle": {"margin": 0.25, "gamma": 128.0},
        "supervised_contrastive": {"temperature": 0.1},
    }[case.kernel]


def make_case(case: Case, device: torch.device, seed: int = 0) -> CaseData:
    """Rows scattered around a centre per identity, as a half-trained network's are; made on `device`."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    labels = torch.arange(case.rows, device=device) // case.images
    labels = labels[torch.randperm(case.rows, generator=generator, device=device)]
    identities = -(-case.rows // case.images)
    low, high = NOISE.get(case.kernel, PLAIN_NOISE)
    noise = low + (high - low) * torch.rand(identities, 1, generator=generator, device=device)
    rows = normal(identities, case.columns)[labels]
    rows += normal(case.rows, case.columns) * noise[labels]
    x_ND = F.normalize(rows, dim=1)
    del rows
    sampled = sample(x_ND, labels)
    margin = margin_of(case.violators, sampled) if case.violators is not None else 0.15
    active = active_share(case.kernel, sampled, constants(case, margin))
    dtype = getattr(torch, case.dtype)
    return CaseData(x_ND.to(dtype), labels, margin, share_inside(margin, sampled), active)
