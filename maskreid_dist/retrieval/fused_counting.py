"""Counting on a GPU: all queries against a large tile of the gallery in one launch, no Q x U matrix.

Shapes: Q queries, U rows of a tile, R the largest number of good images of a query, I undecided pairs.
`maskreid_kernels.retrieval_counts` multiplies the rows as they are stored, and says how many rows lie below
a good image's own measure by more than a proven bound, and which lie within it. Those few are decided here
by the exact pair distance, as `counting.py` does. So the counts are those of the CPU.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import DOUBLE, place_line, places, safe_norms
from maskreid_dist.retrieval.good_images import GoodImages
from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.items import bisect, move, ties
from maskreid_dist.retrieval.pairs import IntArray
from maskreid_dist.retrieval.tile import Tile
from maskreid_kernels.retrieval_counts import (
    UNIT_SPAN,
    Thresholds,
    count_below,
    counted_dtype,
    error_bound,
)

TILE = 1 << 16  # gallery images of a launch, at most
_MOST_PAIRS = 1 << 30  # of a launch: the kernel counts them in 32 bits
_OPEN_SHARE = 1 / 32  # of the pairs; above it sorting a tile is cheaper than exact pairs
_LEAST_CAPACITY = 1 << 12
_CHUNK_ITEMS = 1 << 20  # compared exactly at once
_MOST_GOOD = 4096  # good images of a query: each is compared with every row
_MOST_DIMENSIONS = 1 << 16


class FusedCounter:
    """Counts for all queries at once: before_QR after `finish`, (Q, R) int64."""

    def __init__(self, query: ImageSet, good: GoodImages, gallery_pids: IntArray) -> None:
        """gallery_pids: of the global gallery."""
        self.query, self.good = query, good
        known = np.unique(query.pids)
        self._code_Q = _on(query.features, np.searchsorted(known, query.pids).astype(np.int32))
        at_G = np.minimum(np.searchsorted(known, gallery_pids), len(known) - 1)
        self._code_G = np.where(known[at_G] == gallery_pids, at_G, -1).astype(np.int32)
        # The farthest good image first, -inf where a query has no more.
        Q, R = good.index_BR.shape
        self._at_QR = good.number_B[:, None] - 1 - np.arange(R)
        self._farthest_QR = good.distance_BR[np.arange(Q)[:, None], np.maximum(self._at_QR, 0)]
        self._farthest_QR[self._at_QR < 0] = -np.inf
        self._below_RQ = self._code_Q.new_zeros((R, Q))
        self._moved_QR = np.zeros((Q, R), dtype=np.int64)
        self._thresholds: tuple[float, torch.dtype, Thresholds] | None = None

    def takes(self) -> bool:
        """Whether these queries can be counted here at all."""
        columns, R = self.query.features.shape[1], self.good.index_BR.shape[1]
        return 0 < R <= _MOST_GOOD and columns < _MOST_DIMENSIONS and _within(self.query.norms)

    def step(self) -> int:
        """Gallery images of a tile."""
        return max(1, min(TILE, _MOST_PAIRS // len(self.query)))

    def add(self, tile: Tile) -> bool:
        """Count a tile, or nothing where too much is undecided, or it has copies, or lengths far from 1."""
        if not len(tile.index_N):
            return True
        if tile.member_N is not None or not _within(tile.norms):
            return False
        dtype = torch.promote_types(self.query.features.dtype, tile.features.dtype)
        rows = counted_dtype(dtype)
        slope_U, offset_U = _line(tile)
        counts = count_below(
            self.query.features.to(rows).contiguous(),
            tile.features.to(rows).contiguous(),
            self._code_Q,
            _on(tile.features, self._code_G[tile.index_N]),
            slope_U,
            offset_U,
            self._thresholds_of(tile, dtype),
            capacity=max(_LEAST_CAPACITY, int(_OPEN_SHARE * len(self.query) * len(tile.index_N))),
        )
        if counts.open_3I is None:
            return False
        self._below_RQ += counts.below_RQ
        for part_3I in counts.open_3I.split(_CHUNK_ITEMS, dim=1):
            self._decide(tile, part_3I.long())
        return True

    def finish(self) -> IntArray:
        """(Q, R) negatives before each good image, of the tiles added."""
        before_QR = self._moved_QR.copy()
        q, r = (self._at_QR >= 0).nonzero()
        before_QR[q, self._at_QR[q, r]] += self._below_RQ.cpu().numpy().T[q, r]
        return before_QR

    def _thresholds_of(self, tile: Tile, dtype: torch.dtype) -> Thresholds:
        if self._thresholds is None or self._thresholds[:2] != (tile.scale, dtype):
            self._thresholds = (tile.scale, dtype, self._around(tile, dtype))
        return self._thresholds[2]

    def _around(self, tile: Tile, dtype: torch.dtype) -> Thresholds:
        """Below and above the measure of every good image by what a row's may be wrong by, and by what both
        definitions round in float64."""
        norms_Q, D = self.query.norms.cpu(), self.query.features.shape[1]
        place_QR = places(torch.from_numpy(self._farthest_QR), norms_Q, tile.metric, tile.scale)
        unit_Q = (
            safe_norms(norms_Q)
            if tile.metric == "cosine"
            else place_line(norms_Q, tile.metric, tile.scale)[1]
        )
        bound = error_bound(D, dtype) + 2 * (D + 32) * DOUBLE.roundoff
        low_QR, high_QR = ((place_QR + side * bound) * unit_Q[:, None] for side in (-1, 1))
        device = self.query.features.device
        return Thresholds(
            _float32(low_QR, -torch.inf).T.contiguous().to(device),
            _float32(high_QR, torch.inf).T.contiguous().to(device),
        )

    def _decide(self, tile: Tile, open_3I: Tensor) -> None:
        """Put every pair in its exact place among the query's good images."""
        exact_I = tile.exact(self.query, open_3I[0], open_3I[1]).cpu().numpy()
        row_I, u_I, farthest_I = open_3I.cpu().numpy()
        counted_I = self.good.number_B[row_I] - farthest_I  # from this good image on
        nothing_I = np.zeros_like(counted_I)
        tie_I, after_I = (
            bisect(self.good.distance_BR, row_I, nothing_I, counted_I, exact_I, right=right)
            for right in (False, True)
        )
        move(self._moved_QR, row_I, np.ones_like(row_I), counted_I, after_I)
        row, r, tied = ties(row_I, tie_I, after_I)
        position = tile.index_N.searchsorted(self.good.index_BR[row, r])
        np.add.at(self._moved_QR, (row, r), (u_I[tied] < position).astype(np.int64))


def side_by_side(good: list[GoodImages]) -> GoodImages:
    """The good images of all blocks as those of one."""
    R = max((block.index_BR.shape[1] for block in good), default=0)

    def wide(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        return np.pad(values, ((0, 0), (0, R - values.shape[1])), constant_values=fill)

    return GoodImages(
        np.concatenate([wide(block.distance_BR, np.inf) for block in good]),
        np.concatenate([wide(block.index_BR, 0) for block in good]),
        np.concatenate([block.number_B for block in good]),
    )


def _line(tile: Tile) -> tuple[Tensor, Tensor]:
    """slope_U and offset_U of the measure, float32."""
    if tile.metric == "cosine":
        slope_U = -1 / safe_norms(tile.norms)
        return slope_U.float(), torch.zeros_like(slope_U, dtype=torch.float32)
    square_U = tile.norms.square().float()
    return torch.full_like(square_U, -2), square_U


def _within(norms: Tensor) -> bool:
    least, most = UNIT_SPAN
    return bool(((norms == 0) | ((norms >= least) & (norms <= most))).all())


def _float32(values: Tensor, toward: float) -> Tensor:
    """The nearest float32 that is not on the other side."""
    found = values.float()
    wrong = found.double() > values if toward < 0 else found.double() < values
    return torch.where(wrong, torch.nextafter(found, torch.full_like(found, toward)), found)


def _on(like: Tensor, values: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(values).to(like.device)
