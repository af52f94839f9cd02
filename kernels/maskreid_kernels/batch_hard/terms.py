"""What the backends of the batch-hard loss share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import row_blocks
from ..guards import compute_dtype

DISTANCES = ("euclidean", "squared_euclidean", "cosine")


@dataclass(frozen=True)
class BatchHardTerms:
    """Options of `batch_hard_loss`; margin None is the soft margin."""

    margin: float | None
    distance: str
    normalize: bool

    def pair_distance(self, a_bD: Tensor, b_bD: Tensor) -> Tensor:
        """Distances [b] of rows pair by pair, not expanded. Differentiable; gradient 0 at distance 0."""
        if self.distance == "cosine":
            return 1 - (a_bD * b_bD).sum(1)
        if self.distance == "squared_euclidean":
            return (a_bD - b_bD).square().sum(1)
        # torch defines its gradient at 0 as 0.
        length_b: Tensor = torch.linalg.vector_norm(a_bD - b_bD, dim=1)
        return length_b

    def hinge(self, gap_b: Tensor) -> Tensor:
        """L(k) of gap = d(k, p) - d(k, n)."""
        return F.softplus(gap_b) if self.margin is None else F.relu(gap_b + self.margin)

    def hinge_gradient(self, gap_b: Tensor) -> Tensor:
        """dL(k) / d gap."""
        return torch.sigmoid(gap_b) if self.margin is None else (gap_b + self.margin > 0).to(gap_b.dtype)


def gradient_per_difference(distance_b: Tensor, terms: BatchHardTerms) -> Tensor:
    """w with d distance / d a = w (a - b); 0 at distance 0. For cosine w = 1 stands before -b alone."""
    if terms.distance == "euclidean":
        return torch.where(distance_b > 0, distance_b.reciprocal(), 0)
    return torch.full_like(distance_b, 2.0 if terms.distance == "squared_euclidean" else 1.0)


def row_squares(x_ND: Tensor) -> Tensor:
    """|b|^2 by row [N], in float64 for float64 rows, else in float32."""
    square_N = x_ND.new_zeros(x_ND.shape[0], dtype=compute_dtype(x_ND.dtype))
    for block in row_blocks(x_ND.shape[0], x_ND.shape[1] * square_N.element_size()):
        square_N[block] = x_ND[block].to(square_N.dtype).square().sum(1)  # whole, they would be a copy of x
    return square_N


def mining_squares(x_ND: Tensor, terms: BatchHardTerms) -> Tensor:
    """|b|^2 by row [N], or 0 where the distance has no such term (cosine)."""
    return x_ND.new_zeros(x_ND.shape[0]) if terms.distance == "cosine" else row_squares(x_ND)


def mining_distances(x_bD: Tensor, x_ND: Tensor, square_N: Tensor) -> Tensor:
    """[b, N] |b|^2 - 2 a.b, which orders each row like the true distances."""
    return torch.addmm(square_N, x_bD, x_ND.t(), alpha=-2)
