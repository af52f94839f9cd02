"""Distances between feature rows: their definition in float64, and bounded approximations of it.

Shapes: B queries of a block, U gallery rows of a tile, N pairs, D dimensions.

- `pair_distances` defines the distance. Its bits depend on the two rows alone: products and a fixed tree of
  element-wise additions, each rounded once by IEEE 754, on any device, in any batch, on any number of ranks.
  Two copies of one image are therefore at exactly the same distance wherever they lie.
- `query_operand` times `gallery_operand` is one matrix product, whose last bits may change with the call's
  shape, the library and the thread count. It gives the *place* of every pair: an increasing function of the
  distance within a query's list, between -1 and 1. `place_bound` bounds its difference from the definition;
  whoever compares inside that bound must ask `pair_distances`.

The bound. Let u be the unit roundoff of the product (2^-24 in float32), a and b the two operands in exact
arithmetic, K their length. They are computed in float64 and rounded once, so each element carries a relative
error of at most u (and a few 2^-53, counted below). However a product orders its K terms, and whether it
fuses multiplication and addition or not, each term passes through at most K roundings (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). Hence |computed - a.b| <= gamma(K + 2) sum_i |a_i b_i| with
gamma(n) = n u / (1 - n u). The operands are scaled so that sum_i |a_i b_i| <= 1:

- cosine: a = -q/|q|, b = g/|g|, K = D, and sum |a_i b_i| <= |a||b| <= 1 by Cauchy and Schwarz;
- Euclidean: a = (-2q/c, 1/c), b = (g, |g|^2), K = D + 1, after both rows were divided by a scale of at least
  the tile's largest norm, and c = (|q| + 1)^2: sum |a_i b_i| <= (2|q||g| + |g|^2)/c <= 1.

The definition is itself rounded, in float64: a dot product of D terms, norms and quotients, which is at most
(D + 16) 2^-53 of the same scale; twice that covers the float64 steps of operands and thresholds too.
Underflow adds at most a few D 2^-126, which the constants in `place_bound` hold many times over.
Strassen-like products do not satisfy this bound; BLAS libraries do not use them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
METRICS: tuple[str, ...] = ("cosine", "euclidean")

_SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize: an all-zero row stays zero, at cosine distance 1
_SMALLEST_SCALE = 2.0**-480  # its square and what is divided by it stay far from float64's limits
# float64 elements held at once per operand: 512 KiB, which stays in a CPU's cache; enough to fill a GPU
_CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 23}
_GATHERED_ELEMENTS = 1 << 14  # of chosen rows: 128 KiB, which need no new memory from the system


@dataclass(frozen=True)
class Precision:
    """A product's floating dtype and unit roundoff, and the integers of as many bytes that its places become.

    A place p in [-1, 1] becomes the integer part of p * steps; beside it, COLUMN_BITS of the integer are
    free.
    """

    dtype: torch.dtype
    roundoff: float
    integer: torch.dtype
    steps: float


COLUMN_BITS = 13
# 0.95 leaves room for places that rounding puts beyond 1.
SINGLE = Precision(torch.float32, 2.0**-24, torch.int32, 0.95 * 2**18)
DOUBLE = Precision(torch.float64, 2.0**-53, torch.int64, 0.95 * 2**50)


def precisions(device: torch.device, dimensions: int) -> tuple[Precision, ...]:
    """What to try, one after the other: float32 first where a float32 product is one."""
    single = device.type == "cpu" and dimensions < 1 << 17 and _products_are_float32()
    return (SINGLE, DOUBLE) if single else (DOUBLE,)


def _products_are_float32() -> bool:
    """Whether torch was not allowed to compute a CPU's float32 products in bfloat16."""
    allowed = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # torch has no stub of it
    return allowed in ("none", "ieee")


def row_norms(feat_ND: Tensor) -> Tensor:
    """Euclidean norm of every row, (N,) float64, with bits that depend on the row alone."""
    step = _rows_at_once(feat_ND)
    norms_N = feat_ND.new_empty(len(feat_ND), dtype=torch.float64)
    # Into one piece of memory: small ones that stay, between large ones that go, would break up the heap.
    for chunk, out in zip(feat_ND.split(step), norms_N.split(step), strict=True):
        out.copy_(_rounded_sqrt(_tree_sum(chunk.to(torch.float64, copy=True).square_())))
    return norms_N


def _rounded_sqrt(squares_N: Tensor) -> Tensor:
    """The float64 nearest to the root, as IEEE 754 has it. torch's on a CPU may be its neighbour: MKL's has
    an error of its own, and one that its place in the vector decides.
    """
    if squares_N.device.type != "cpu":
        return squares_N.sqrt()
    return torch.from_numpy(np.sqrt(squares_N.numpy()))


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
    step = _rows_at_once(query_BD)
    distance_N = query_BD.new_empty(len(rows_N), dtype=torch.float64)
    chunks = (x_N.split(step) for x_N in (rows_N, columns_N, distance_N))
    for rows, columns, out in zip(*chunks, strict=True):
        q = query_BD.index_select(0, rows).to(torch.float64)  # a copy: index_select makes one
        g = gallery_TD.index_select(0, columns).to(query_BD.device)
        if metric == "euclidean":
            out.copy_(_tree_sum(q.sub_(g).square_()))
            continue
        scale = safe_norms(query_norms_B[rows]) * safe_norms(gallery_norms_T[columns].to(query_BD.device))
        out.copy_(1.0 - _tree_sum(q.mul_(g)) / scale)
    return distance_N


def close_dots(
    query_BD: NDArray[np.float64],
    rows_N: NDArray[np.int64],
    gallery_TD: NDArray[np.floating],
    columns_N: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Dot products of chosen pairs: (N,) float64. A library chooses the order of the additions, so
    `product_bound` holds, not the last bits."""
    D = query_BD.shape[1]
    step = max(1, _GATHERED_ELEMENTS // D)
    q_ND, g_ND = np.empty((step, D)), np.empty((step, D), gallery_TD.dtype)
    dot_N = np.empty(len(rows_N))
    for start in range(0, len(rows_N), step):
        rows, columns = rows_N[start : start + step], columns_N[start : start + step]
        # clip: no index is out of range, and without it NumPy takes by way of a copy
        q = query_BD.take(rows, axis=0, out=q_ND[: len(rows)], mode="clip")
        g = gallery_TD.take(columns, axis=0, out=g_ND[: len(rows)], mode="clip")
        np.vecdot(q, g, out=dot_N[start : start + step])
    return dot_N


def block_distances(
    query_BD: Tensor, query_norms_B: Tensor, gallery_TD: Tensor, gallery_norms_T: Tensor, metric: Metric
) -> Tensor:
    """The distances of `pair_distances`, bit for bit, for every pair: (B, T) float64.

    Several times faster a pair: gallery rows are gathered and widened once, and lie in columns, so that all
    additions of the tree are of long contiguous rows. Products of narrower numbers than float64 are exact in
    it, so that the tree's first additions may take them as they come, whether or not that is one instruction.
    """
    exact = metric == "cosine" and torch.float64 not in (query_BD.dtype, gallery_TD.dtype)
    query_BD = query_BD.double()
    half = (query_BD.shape[1] + 1) // 2 if exact else query_BD.shape[1]
    step = 2 * _rows_at_once(query_BD)
    parts = [query_BD.new_zeros(len(query_BD), 0)]
    for rows, norms in zip(gallery_TD.split(step), gallery_norms_T.split(step), strict=True):
        g_DT = rows.to(query_BD.device).double().T.contiguous()
        terms_DT = torch.empty_like(g_DT[:half])
        halves = _halves(terms_DT.T)
        rest_DT = terms_DT[: len(g_DT) - half]
        sums = query_BD.new_empty(len(query_BD), len(rows))
        for q_D, sum_T in zip(query_BD, sums, strict=True):
            if metric == "euclidean":
                torch.sub(q_D[:, None], g_DT, out=terms_DT).square_()
            else:
                torch.mul(q_D[:half, None], g_DT[:half], out=terms_DT)
                rest_DT.addcmul_(q_D[half:, None], g_DT[half:])
            for left, right in halves:
                left.add_(right)
            sum_T.copy_(terms_DT[0])
        if metric == "cosine":
            scale = safe_norms(query_norms_B)[:, None] * safe_norms(norms.to(query_BD.device))[None, :]
            sums = 1.0 - sums / scale
        parts.append(sums)
    return torch.cat(parts, dim=1)


def tile_scale(gallery_norms_U: Tensor, query_norms_B: Tensor, metric: Metric) -> float:
    """What Euclidean rows are divided by: the tile's largest norm, kept from the queries' and float64's
    limits, then the next power of two, which is mostly the same for all tiles."""
    if metric == "cosine" or not len(gallery_norms_U):
        return 1.0
    largest_query = float(query_norms_B.max())
    scale = max(float(gallery_norms_U.max()), largest_query * 2.0**-400, _SMALLEST_SCALE)
    return math.ldexp(1.0, math.frexp(scale)[1])


def gallery_operand(
    gallery_UD: Tensor, norms_U: Tensor, metric: Metric, scale: float, precision: Precision
) -> Tensor:
    """(U, K) in the precision's dtype."""
    U, D = gallery_UD.shape
    operand = torch.empty(U, D + (metric == "euclidean"), dtype=precision.dtype, device=gallery_UD.device)
    step = _rows_at_once(gallery_UD)
    parts = zip(gallery_UD.split(step), norms_U.split(step), operand.split(step), strict=True)
    for g, norms, out in parts:
        if metric == "cosine":
            out.copy_(g.double() / safe_norms(norms)[:, None])
        else:
            out[:, :D] = g.double() / scale
            out[:, D] = (norms / scale).square()
    return operand


def query_operand(
    query_BD: Tensor, norms_B: Tensor, metric: Metric, scale: float, precision: Precision
) -> Tensor:
    """(B, K) in the precision's dtype, times its steps."""
    if metric == "cosine":
        rows = query_BD.double() / -safe_norms(norms_B)[:, None]
    else:
        spread_B1 = _spread(norms_B, scale)[:, None]
        rows = torch.cat([query_BD.double() / scale * (-2.0 / spread_B1), 1.0 / spread_B1], dim=1)
    return rows.mul_(precision.steps).to(precision.dtype)


def place_line(norms_B: Tensor, metric: Metric, scale: float) -> tuple[Tensor, Tensor]:
    """origin_B and unit_B, float64: a query's distances are origin + unit * place."""
    if metric == "cosine":
        return torch.ones_like(norms_B), torch.ones_like(norms_B)
    return norms_B.square(), (norms_B + scale).square()


def places(distance_BR: Tensor, norms_B: Tensor, metric: Metric, scale: float) -> Tensor:
    """Places of distances: (B, R) float64."""
    origin_B, unit_B = place_line(norms_B, metric, scale)
    return (distance_BR - origin_B[:, None]) / unit_B[:, None]


def product_bound(dimensions: int, precision: Precision) -> float:
    """Bound on the difference of a place as the product gives it, divided by `steps`, from the definition's.
    See the module's docstring."""
    n = (dimensions + 8) * precision.roundoff
    return n / (1 - n) + 2 * (dimensions + 32) * DOUBLE.roundoff


def place_bound(dimensions: int, precision: Precision) -> float:
    """The same for a place's integer part."""
    return product_bound(dimensions, precision) + 1 / precision.steps


def _rows_at_once(rows_ND: Tensor) -> int:
    return max(1, _CHUNK_ELEMENTS.get(rows_ND.device.type, 1 << 16) // rows_ND.shape[1])


def _spread(norms_B: Tensor, scale: float) -> Tensor:
    return (norms_B / scale + 1.0).square()


def safe_norms(norms: Tensor) -> Tensor:
    """What rows are divided by."""
    return norms.clamp_min(_SMALLEST_NORM)


def _tree_sum(terms_ND: Tensor) -> Tensor:
    """Row sums by halving: only element-wise additions, so no library chooses the order. Overwrites its
    terms."""
    for left, right in _halves(terms_ND):
        left.add_(right)
    return terms_ND[:, 0].clone()  # not a view that keeps all terms alive


def _halves(terms_ND: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The columns to add, and those they are added to, from the whole width down to one."""
    pairs = []
    width = terms_ND.shape[1]
    while width > 1:
        half = (width + 1) // 2
        pairs.append((terms_ND[:, : width - half], terms_ND[:, half:width]))
        width = half
    return pairs
