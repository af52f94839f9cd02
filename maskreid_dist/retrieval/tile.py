"""A tile of the gallery: consecutive images of one rank, as the rows that a product needs.

Shapes: N images (junk of pid -1 left out), U rows, N = U unless copies were merged, D dimensions.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import (
    COLUMN_BITS,
    DOUBLE,
    Metric,
    Precision,
    block_distances,
    close_dots,
    gallery_operand,
    pair_distances,
    place_line,
    product_bound,
    query_operand,
    safe_norms,
    tile_scale,
)
from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.pairs import JUNK_PID, IntArray

LARGEST_TILE = 1 << COLUMN_BITS
_COPIES = 8  # a row that occurs so often has its tile's copies merged


@dataclass(frozen=True, eq=False)
class Tile:
    """features (U, D) and norms (U,) on the queries' device.

    index_N: global gallery index of every image, ascending; row_N: its row; position: of an image among the
    N, by its place in the gallery from `first` on. Where copies were merged, member_N holds row * N +
    position of all images in ascending order, else None.
    """

    features: Tensor
    norms: Tensor
    metric: Metric
    scale: float
    first: int
    index_N: IntArray
    row_N: IntArray
    position: IntArray
    member_N: IntArray | None
    _operands: dict[Precision, Tensor] = field(default_factory=dict)

    @classmethod
    def build(cls, part: ImageSet, first: int, query_norms: Tensor, metric: Metric) -> "Tile":
        """part: images, at most LARGEST_TILE where keys are wanted; first: global index of the first of them;
        query_norms: of all queries."""
        listed = part.pids != JUNK_PID
        kept = np.flatnonzero(listed)
        features, norms = part.features, part.norms
        if len(kept) < len(part):
            chosen = torch.from_numpy(kept).to(features.device)
            features, norms = features[chosen], norms[chosen]
        row_N, representatives = _merge_copies(features, norms)
        member_N = None
        if representatives is not None:
            member_N = np.sort(row_N * len(kept) + np.arange(len(kept)))
            chosen = torch.from_numpy(representatives).to(features.device)
            features, norms = features[chosen], norms[chosen]
        scale = tile_scale(norms, query_norms, metric)
        position = np.cumsum(listed) - 1
        return cls(features, norms, metric, scale, first, first + kept, row_N, position, member_N)

    def product(self, query: ImageSet, precision: Precision) -> Tensor:
        """(B, U) places of all pairs in the precision's dtype, times its steps."""
        a_BK, b_UK = self._operands_of(query, precision)
        product = a_BK.new_empty(len(a_BK), len(b_UK))
        torch.mm(a_BK, b_UK.T, out=product)  # `out` also keeps autocast away
        return product

    def keys(self, query: ImageSet, precision: Precision) -> Tensor:
        """(B, U) integers: the place of every pair, and the row's number in the last COLUMN_BITS."""
        keys = self.product(query, precision).to(precision.integer)
        columns = torch.arange(keys.shape[1], dtype=keys.dtype, device=keys.device)
        return torch.add(columns, keys, alpha=1 << COLUMN_BITS, out=keys)

    def near(
        self, query: ImageSet, row_I: IntArray, u_I: IntArray
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(I,) distances of chosen pairs, and what they may be wrong by: next to nothing. On a CPU."""
        dot_I = close_dots(query.features.double().numpy(), row_I, self._wide, u_I)
        if self.metric == "euclidean":
            squares_B, squares_U = query.norms.square().numpy(), self.norms.square().numpy()
            near_I = squares_B[row_I] + squares_U[u_I] - 2 * dot_I
        else:
            near_I = 1 - dot_I / (
                safe_norms(query.norms).numpy()[row_I] * safe_norms(self.norms).numpy()[u_I]
            )
        _, unit_B = place_line(query.norms, self.metric, self.scale)
        return near_I, unit_B.numpy()[row_I] * product_bound(self.features.shape[1], DOUBLE)

    @cached_property
    def _wide(self) -> NDArray[np.floating]:
        """The rows in a type that NumPy has; on a CPU."""
        narrow = self.features.dtype not in (torch.float32, torch.float64)
        rows: NDArray[np.floating] = (self.features.float() if narrow else self.features).numpy()
        return rows

    def _operands_of(self, query: ImageSet, precision: Precision) -> tuple[Tensor, Tensor]:
        if precision not in self._operands:
            self._operands.clear()  # only one is held: blocks take turns precision by precision
            args = (self.features, self.norms, self.metric, self.scale, precision)
            self._operands[precision] = gallery_operand(*args)
        a_BK = query_operand(query.features, query.norms, self.metric, self.scale, precision)
        return a_BK, self._operands[precision]

    def exact_block(self, query: ImageSet) -> NDArray[np.float64]:
        """(B, N) distances of all pairs of a query and an image."""
        q, g = (query.features, query.norms), (self.features, self.norms)
        distance_BU = block_distances(*q, *g, self.metric).cpu().numpy()
        return distance_BU if self.member_N is None else distance_BU[:, self.row_N]

    def exact(self, query: ImageSet, query_rows: Tensor, rows: Tensor) -> Tensor:
        """(N,) float64 distances of chosen pairs."""
        q = (query.features, query.norms, query_rows)
        return pair_distances(*q, self.features, self.norms, rows, self.metric)


def _merge_copies(features_ND: Tensor, norms_N: Tensor) -> tuple[IntArray, IntArray | None]:
    """The row of every image; the image that stands for every row, None where each stands for itself.

    Copies have equal norms, so a tile without equal norms is not looked at.
    """
    apart = np.arange(len(norms_N))
    if np.unique(norms_N.cpu().numpy(), return_counts=True)[1].max(initial=0) < _COPIES:
        return apart, None
    found = np.unique(_row_bytes(features_ND), return_index=True, return_inverse=True, return_counts=True)
    _, representatives, row_N, counts = found
    if counts.max() < _COPIES:
        return apart, None
    return row_N.reshape(-1), representatives


def _row_bytes(features_ND: Tensor) -> NDArray[np.void]:
    """(N,) rows as opaque bytes; NumPy has no bfloat16, so they pass as bytes from the start."""
    contiguous = features_ND.cpu().contiguous()
    bytes_NW = contiguous.view(torch.uint8).numpy()
    return bytes_NW.view(np.dtype((np.void, bytes_NW.shape[1]))).reshape(-1)
