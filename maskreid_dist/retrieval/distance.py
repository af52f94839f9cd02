"""Distances between feature rows, in float64.

Shapes: B queries of a block, T gallery images of a tile, N pairs, D dimensions.

Two computations of the same quantity, for two purposes:

- `pair_distances` defines the distance. Its bits depend on the two rows alone: products and a fixed tree of
  element-wise additions, each rounded once by IEEE 754, on any device, in any batch, on any number of ranks.
  Two copies of one image are therefore at exactly the same distance wherever they lie.
- `tile_distances` is one matrix product, whose last bits may change with the call's shape, the library and
  the thread count. `error_bound` bounds its difference from the definition; whoever compares inside that
  bound must ask `pair_distances`.
"""

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
METRICS: tuple[str, ...] = ("cosine", "euclidean")

_SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize: an all-zero row stays zero, at cosine distance 1
_CHUNK_ELEMENTS = 1 << 18  # float64 elements held at once per operand: 2 MiB, which stays in cache


def row_norms(feat_ND: Tensor) -> Tensor:
    """Euclidean norm of every row, (N,) float64, with bits that depend on the row alone."""
    step = max(1, _CHUNK_ELEMENTS // feat_ND.shape[1])
    parts = [_tree_sum(chunk.double().square()).sqrt() for chunk in feat_ND.split(step)]
    return torch.cat(parts) if parts else feat_ND.new_zeros(0, dtype=torch.float64)


def pair_distances(
    query_BD: Tensor,
    query_norms_B: Tensor,
    rows_N: Tensor,
    gallery_TD: Tensor,
    gallery_norms_T: Tensor,
    columns_N: Tensor,
    metric: Metric,
) -> Tensor:
    """Distance of the pairs (rows_N[n], columns_N[n]): (N,) float64.

    cosine: 1 - q.g / (|q| |g|); euclidean: |q - g|^2, squared because only its order counts.
    """
    step = max(1, _CHUNK_ELEMENTS // query_BD.shape[1])
    parts = [query_BD.new_zeros(0, dtype=torch.float64)]
    for rows, columns in zip(rows_N.split(step), columns_N.split(step), strict=True):
        q, g = query_BD[rows].double(), gallery_TD[columns].to(query_BD.device).double()
        if metric == "euclidean":
            parts.append(_tree_sum((q - g).square_()))
            continue
        scale = _safe(query_norms_B[rows]) * _safe(gallery_norms_T[columns].to(query_BD.device))
        parts.append(1.0 - _tree_sum(q.mul_(g)) / scale)
    return torch.cat(parts)


def tile_distances(
    query_BD: Tensor, query_norms_B: Tensor, gallery_TD: Tensor, gallery_norms_T: Tensor, metric: Metric
) -> Tensor:
    """The same distances for every pair of a block and a tile, by one matrix product: (B, T) float64."""
    q, g = query_BD.double(), gallery_TD.double()
    if metric == "cosine":
        q = q / -_safe(query_norms_B)[:, None]
        return (q @ g.T).div_(_safe(gallery_norms_T)).add_(1.0)
    squares_BT = query_norms_B.square()[:, None] + gallery_norms_T.square()[None, :]
    return squares_BT.addmm_(q, g.T, alpha=-2.0)


def error_bound(query_norms_B: Tensor, gallery_norms_T: Tensor, dimensions: int, metric: Metric) -> Tensor:
    """Bound on |tile_distances - pair_distances| for any gallery image of the tile: (B,) float64.

    A dot product of D terms in any order is off by at most D u |q||g| (Higham, Accuracy and Stability of
    Numerical Algorithms, ch. 3), u = 2^-53; both computations may be off, and 16 covers norms, quotients and
    final sums.
    """
    relative = 2.0 * (dimensions + 16) * 2.0**-53
    if metric == "cosine":
        return torch.full_like(query_norms_B, relative)
    return (query_norms_B + gallery_norms_T.max()).square() * relative


def _safe(norms: Tensor) -> Tensor:
    return norms.clamp_min(_SMALLEST_NORM)


def _tree_sum(terms_ND: Tensor) -> Tensor:
    """Row sums by halving: only element-wise additions, so no library chooses the order."""
    width = terms_ND.shape[1]
    while width > 1:
        half = (width + 1) // 2
        folded = terms_ND[:, :half].clone()
        folded[:, : width - half] += terms_ND[:, half:width]
        terms_ND, width = folded, half
    return terms_ND[:, 0]
