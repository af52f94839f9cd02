"""Ranks of the good images of a block of queries, by counting over gallery tiles.

Shapes: B queries of the block, U rows of a tile, R the largest number of good images of a query, I items.
The list of a query is ordered by (distance, gallery index). Its good images are ordered among themselves
directly; what remains is to count, for each of them, the negatives that come before it. A tile's matrix
product puts every negative at a place with a bounded error (`distance.py`). What lies below a good image's
own place by more than the bound comes before it, what lies above it by more comes after it; both are counted
by sorting the places (`counting_sorted.py`) or by comparing them (`counting_compared.py`). The few in
between, the items, are compared by a product in float64 and, where that does not tell, by the exact pair
distance. The count is thus the same for every tiling, every sharding and every precision. The first precision
is float32; a block for which it leaves much open (many good images a query, or a gallery of near copies) goes
on in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.counting_compared import MOST_GOOD, ComparedPlaces, compared_bounds
from maskreid_dist.retrieval.counting_sorted import SortedPlaces, sorted_bounds
from maskreid_dist.retrieval.distance import DOUBLE, Precision, places
from maskreid_dist.retrieval.good_images import GoodImages
from maskreid_dist.retrieval.inputs import ImageSet, part
from maskreid_dist.retrieval.items import Items, bisect, move, ties
from maskreid_dist.retrieval.pairs import BlockPairs, IntArray
from maskreid_dist.retrieval.tile import Tile

# Of a block's pairs with a tile; above it the next precision is cheaper than exact pairs.
_OPEN_SHARE = 1 / 16
# Above it in float64 the exact distances of a whole block are cheaper than those of pairs.
_SORTED_SHARE = 1 / 8
_FEW = 8  # queries that tell whether the next tile is like the last
# Good images of a query, on average, up to which places are compared, not sorted. Both cost the same at 18
# where NumPy's sort takes 6 to 8 ns a key (AVX2); with AVX-512 it was seen to take 13 to 29 (2026-11-27).
_FEW_GOOD = 24
_FEW_VALUES = 64  # distances that are looked for in a row of a tile one by one


class BlockCounter:
    """Counts, tile by tile, the negatives before each good image of a block: before_BR, (B, R) int64."""

    def __init__(self, query: ImageSet, pairs: BlockPairs, good: GoodImages) -> None:
        self.query, self.pairs, self.good = query, pairs, good
        self.before_BR = np.zeros(good.index_BR.shape, dtype=np.int64)
        self._too_coarse: Precision | None = None
        self._sorted_before = False  # the last tile, as too much of it was open
        self._places: tuple[float, Tensor] | None = None

    def add(self, tile: Tile, precision: Precision, last: bool) -> bool:
        """Count, or leave all to a later precision if this one leaves much open (and from then on at once).

        last: there is no later one, and where it leaves most open, as in a gallery of near copies, all pairs'
        exact distances are computed and sorted. Returns whether the tile was counted.
        """
        if not self.good.index_BR.size or not len(tile.index_N):
            return True
        if precision == self._too_coarse:
            return False
        unlisted = self._unlisted(tile)
        if last and self._sorted_before and self._open_of_few(tile, precision) > _SORTED_SHARE:
            self._sort_exactly(tile, *unlisted)
            return True
        found = self._search(self.query, tile, precision, unlisted)
        open_share = found.open / (len(self.query) * len(tile.norms))
        if not last and open_share > _OPEN_SHARE:
            self._too_coarse = precision
            return False
        self._sorted_before = last and open_share > _SORTED_SHARE
        if self._sorted_before:
            self._sort_exactly(tile, *unlisted)
            return True
        copies = None if tile.member_N is None else _Copies.of(tile, len(self.query), *unlisted)
        self.before_BR += found.before(None if copies is None else copies.weight_BU)
        for items in found.items():
            self._decide(tile, precision, copies, items)
        return True

    def _open_of_few(self, tile: Tile, precision: Precision) -> float:
        """As of a whole block, of its first queries: the share of pairs that are left open, about."""
        few = part(self.query, 0, _FEW)
        return self._search(few, tile, precision, None).open / (len(few) * len(tile.norms))

    def _search(
        self, query: ImageSet, tile: Tile, precision: Precision, unlisted: tuple[IntArray, IntArray] | None
    ) -> SortedPlaces | ComparedPlaces:
        """query: the block's first ones; unlisted: see `_unlisted`, none are left out without it."""
        number_B, D = self.good.number_B[: len(query)], query.features.shape[1]
        place_BR = self._places_of_good(tile)[: len(query)]
        if self._compares(tile):
            product_BU = tile.product(query, precision)
            if unlisted is not None:
                product_BU[torch.from_numpy(unlisted[0]), torch.from_numpy(unlisted[1])] = torch.inf
            return ComparedPlaces(product_BU, *compared_bounds(place_BR, D, precision), number_B)
        keys_BU = tile.keys(query, precision)
        if unlisted is not None and tile.member_N is None:
            _take_out(keys_BU, *unlisted)
        return SortedPlaces(keys_BU, *sorted_bounds(place_BR, D, precision), number_B)

    def _compares(self, tile: Tile) -> bool:
        few = self.good.number_B.mean() <= _FEW_GOOD and self.good.number_B.max() <= MOST_GOOD
        return bool(few) and tile.member_N is None and tile.features.device.type == "cpu"

    def _places_of_good(self, tile: Tile) -> Tensor:
        """(B, R) float64."""
        if self._places is None or self._places[0] != tile.scale:
            distance_BR = torch.from_numpy(self.good.distance_BR)
            place_BR = places(distance_BR, self.query.norms.cpu(), tile.metric, tile.scale)
            self._places = (tile.scale, place_BR)
        return self._places[1]

    def _sort_exactly(self, tile: Tile, query_rows: IntArray, positions: IntArray) -> None:
        """Count by the exact distances of all pairs, those of copies among them."""
        distance_BN = tile.exact_block(self.query)
        distance_BN[query_rows, positions] = np.inf
        sorted_BN = np.sort(distance_BN, axis=1)
        position_BR = tile.index_N.searchsorted(self.good.index_BR)
        for b, number in enumerate(self.good.number_B):
            good = self.good.distance_BR[b, :number], position_BR[b, :number]
            self.before_BR[b, :number] += _before(distance_BN[b], sorted_BN[b], *good)

    def _unlisted(self, tile: Tile) -> tuple[IntArray, IntArray]:
        """Good images, ordered already, and junk: (query rows, positions in the tile)."""
        row = np.concatenate([self.pairs.good_row, self.pairs.junk_row])
        offset = np.concatenate([self.pairs.good_index, self.pairs.junk_index]) - tile.first
        here = (offset >= 0) & (offset < len(tile.position))
        return row[here], tile.position[offset[here]]

    def _decide(self, tile: Tile, precision: Precision, copies: "_Copies | None", items: Items) -> None:
        """Add the items that exactly come before good images which they are not counted for yet."""
        row_I, u_I = items.row_I, items.u_I
        weight_I = np.ones_like(u_I) if copies is None else copies.weight_BU[row_I, u_I]
        tie_I, after_I = self._between(tile, precision, items)
        move(self.before_BR, row_I, weight_I, items.counted_I, after_I)
        row, r, tied = ties(row_I, tie_I, after_I)
        if len(row):
            position = tile.index_N.searchsorted(self.good.index_BR[row, r])
            u = u_I[tied]
            before = u < position if copies is None else copies.listed_before(row, u, position)
            np.add.at(self.before_BR, (row, r), before.astype(np.int64))

    def _between(self, tile: Tile, precision: Precision, items: Items) -> tuple[IntArray, IntArray]:
        """First good image in undecided..counted - 1 that is not nearer than each item, first that is
        farther.

        In float32 a product in float64 separates nearly all; the exact distance is for ties.
        """
        good_BR = self.good.distance_BR
        row_I, u_I, low_I, high_I = items.row_I, items.u_I, items.undecided_I, items.counted_I
        if precision is not DOUBLE:
            near, error = tile.near(self.query, row_I, u_I)
            low_I = bisect(good_BR, row_I, low_I, high_I, near - error, right=False)
            high_I = bisect(good_BR, row_I, low_I, high_I, near + error, right=True)
        tie_I, after_I = low_I.copy(), high_I.copy()
        open_i = np.flatnonzero(low_I < high_I)
        if len(open_i):
            row_i, low_i, high_i = row_I[open_i], low_I[open_i], high_I[open_i]
            at = (torch.from_numpy(x).to(tile.features.device) for x in (row_i, u_I[open_i]))
            exact_i = tile.exact(self.query, *at).cpu().numpy()
            tie_I[open_i] = bisect(good_BR, row_i, low_i, high_i, exact_i, right=False)
            after_I[open_i] = bisect(good_BR, row_i, low_i, high_i, exact_i, right=True)
        return tie_I, after_I


@dataclass(frozen=True, eq=False)
class _Copies:
    """What is listed behind the rows of a tile of merged copies.

    weight_BU: listed negatives behind every row; unlisted: the other images, as sorted numbers (query * U +
    row) * N + position.
    """

    tile: Tile
    weight_BU: IntArray
    unlisted: IntArray

    @classmethod
    def of(cls, tile: Tile, queries: int, query_rows: IntArray, positions: IntArray) -> "_Copies":
        rows, U = tile.row_N[positions], len(tile.norms)
        weight_BU = np.tile(np.bincount(tile.row_N, minlength=U), (queries, 1))
        np.subtract.at(weight_BU, (query_rows, rows), 1)
        return cls(tile, weight_BU, np.sort((query_rows * U + rows) * len(tile.index_N) + positions))

    def listed_before(self, row: IntArray, u: IntArray, position: IntArray) -> IntArray:
        """How many listed negatives among the copies of row u lie before a position of the tile."""
        N, U = len(self.tile.index_N), self.weight_BU.shape[1]
        assert self.tile.member_N is not None
        copies = _between(self.tile.member_N, u * N, u * N + position)
        start = (row * U + u) * N
        return copies - _between(self.unlisted, start, start + position)


def _take_out(keys_BU: Tensor, query_rows: IntArray, rows: IntArray) -> None:
    """Give images that are not counted the largest key, which no search reaches."""
    at = (torch.from_numpy(query_rows).to(keys_BU.device), torch.from_numpy(rows).to(keys_BU.device))
    keys_BU[at] = torch.iinfo(keys_BU.dtype).max


def _before(
    distance_N: NDArray[np.float64],
    sorted_N: NDArray[np.float64],
    good_R: NDArray[np.float64],
    position_R: IntArray,
) -> IntArray:
    """How many images come before each good one at `good_R`: nearer, or as near and of a lower position."""
    first_R = sorted_N.searchsorted(good_R)
    tied = np.flatnonzero(sorted_N.searchsorted(good_R, side="right") > first_R)
    if len(tied):
        value_V, value_T = np.unique(good_R[tied], return_inverse=True)
        # Ascending numbers value * N + position of all images at these distances.
        if len(value_V) <= _FEW_VALUES:
            number_M = np.flatnonzero(value_V[:, None] == distance_N)
        else:
            value_N = np.minimum(value_V.searchsorted(distance_N), len(value_V) - 1)
            position_M = np.flatnonzero(value_V[value_N] == distance_N)
            number_M = np.sort(value_N[position_M] * len(distance_N) + position_M)
        start_T = value_T * len(distance_N)
        first_R[tied] += _between(number_M, start_T, start_T + position_R[tied])
    return first_R


def _between(ascending: IntArray, start: IntArray, stop: IntArray) -> IntArray:
    return ascending.searchsorted(stop) - ascending.searchsorted(start)
