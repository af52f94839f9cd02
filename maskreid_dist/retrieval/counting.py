"""Ranks of the good images of a block of queries, by counting over gallery tiles.

Shapes: B queries of the block, U rows of a tile, R the largest number of good images of a query, I items.
The list of a query is ordered by (distance, gallery index). Its good images are ordered among themselves
directly; what remains is to count, for each of them, the negatives that come before it. A tile's matrix
product puts every negative at a place with a bounded error (`distance.py`). Sorted places are searched for
each good image's own place, less and plus the bound: what lies below comes before it, what lies above comes
after it, and the few in between, the items, are compared by a closer sum and, where
that does not tell, by the exact pair distance. The count is thus the same for every
tiling, every sharding and every precision. The first precision is float32; a block for which it leaves much
open (many good images a query, or a gallery of near copies) goes on in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
    pair_distances,
    place_bound,
    places,
)
from maskreid_dist.retrieval.inputs import ImageSet, part
from maskreid_dist.retrieval.pairs import BlockPairs, IntArray
from maskreid_dist.retrieval.tile import Tile

_OPEN_SHARE = (
    1 / 16
)  # of a block's pairs with a tile; above it the next precision is cheaper than exact pairs
# Above it in float64 the exact distances of a whole block are cheaper than those of pairs.
_SORTED_SHARE = 1 / 8
_FEW = 8  # queries that tell whether the next tile is like the last
_CHUNK_ITEMS = 1 << 17  # compared exactly at once
_MANY_GOOD = 256  # good images of a query from which on its identity's distances are computed as a block
_CHUNK_COLUMNS = 4096  # of such a block


@dataclass(frozen=True, eq=False)
class GoodImages:
    """Good images per query in list order: distance_BR (float64, padded with inf),
    index_BR (global, int64), number_B."""

    distance_BR: NDArray[np.float64]
    index_BR: IntArray
    number_B: IntArray


@dataclass(frozen=True, eq=False)
class Intervals:
    """Where a tile's sorted places [start, stop) lie too near to each good image's to be decided.

    Both (B, R) and ascending along R; padding has start = stop = U. fresh_BR: the first of them that no
    earlier interval of the row holds.
    """

    start_BR: IntArray
    stop_BR: IntArray

    @property
    def fresh_BR(self) -> IntArray:
        before = np.zeros_like(self.stop_BR)
        before[:, 1:] = self.stop_BR[:, :-1]
        return np.maximum(self.start_BR, before)

    def items(self) -> int:
        return int(np.maximum(self.stop_BR - self.fresh_BR, 0).sum())


def local_good_distances(
    query: ImageSet, gallery: ImageSet, first: int, pairs: BlockPairs, metric: Metric
) -> Tensor:
    """Exact distance of every good pair whose image is in this rank's gallery, which starts at global index
    `first`; 0 for the others: (P,) float64, on the CPU."""
    column_P = pairs.good_index - first
    here_P = (column_P >= 0) & (column_P < len(gallery))
    distance_P = torch.zeros(len(column_P), dtype=torch.float64)
    single_P = here_P.copy()
    many = np.bincount(pairs.good_row, minlength=len(query)) >= _MANY_GOOD
    for pid in np.unique(query.pids[many]):
        chosen = np.flatnonzero(here_P & (query.pids == pid)[pairs.good_row])
        distance_P[torch.from_numpy(chosen)] = _identity_distances(
            query, gallery, pairs.good_row[chosen], column_P[chosen], metric
        )
        single_P[chosen] = False
    rows = torch.from_numpy(pairs.good_row[single_P]).to(query.features.device)
    columns = torch.from_numpy(column_P[single_P]).to(gallery.features.device)
    q, g = (query.features, query.norms), (gallery.features, gallery.norms)
    distance_P[torch.from_numpy(single_P)] = pair_distances(*q, rows, *g, columns, metric).cpu()
    return distance_P


def _identity_distances(
    query: ImageSet, gallery: ImageSet, row_N: IntArray, column_N: IntArray, metric: Metric
) -> Tensor:
    """Exact distances of pairs of one identity, which share most rows and columns: (N,) on the CPU."""
    rows, at_row = np.unique(row_N, return_inverse=True)
    columns, at_column = np.unique(column_N, return_inverse=True)
    rows_b = torch.from_numpy(rows).to(query.features.device)
    columns_t = torch.from_numpy(columns).to(gallery.features.device)
    found = torch.empty(len(row_N), dtype=torch.float64)
    q = (query.features[rows_b], query.norms[rows_b])
    for start in range(0, len(columns), _CHUNK_COLUMNS):
        part = columns_t[start : start + _CHUNK_COLUMNS]
        block = block_distances(*q, gallery.features[part], gallery.norms[part], metric).cpu()
        inside = np.flatnonzero((at_column >= start) & (at_column < start + len(part)))
        at = (torch.from_numpy(at_row[inside]), torch.from_numpy(at_column[inside] - start))
        found[torch.from_numpy(inside)] = block[at]
    return found


def order_good_images(pairs: BlockPairs, distance_P: Tensor, rows: int) -> GoodImages:
    """Sort each query's good images by (distance, gallery index) and lay them out as padded rows.

    They come in rows, by ascending gallery index, so a stable sort keeps the order of ties.
    """
    number_B = np.bincount(pairs.good_row, minlength=rows)
    distance_BR = np.full((rows, int(number_B.max(initial=0))), np.inf)
    index_BR = np.zeros(distance_BR.shape, dtype=np.int64)
    ends = np.cumsum(number_B)
    for b, (start, end) in enumerate(zip(ends - number_B, ends, strict=True)):
        distance = distance_P[start:end].numpy()
        order = distance.argsort(kind="stable")
        distance_BR[b, : end - start] = distance[order]
        index_BR[b, : end - start] = pairs.good_index[start:end][order]
    return GoodImages(distance_BR, index_BR, number_B)


class BlockCounter:
    """Counts, tile by tile, the negatives before each good image of a block: before_BR, (B, R) int64."""

    def __init__(self, query: ImageSet, pairs: BlockPairs, good: GoodImages) -> None:
        self.query, self.pairs, self.good = query, pairs, good
        self.before_BR = np.zeros(good.index_BR.shape, dtype=np.int64)
        self._too_coarse: Precision | None = None
        self._sorted_before = False  # the last tile, as too much of it was open
        self._bounds: tuple[Precision, float, Tensor, Tensor] | None = None

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
        keys_BU = tile.keys(self.query, precision)
        if tile.member_N is None:
            _take_out(keys_BU, *unlisted)
        keys_BU = _sort_rows(keys_BU)
        intervals = self._intervals(tile, keys_BU, precision)
        open_share = intervals.items() / keys_BU.numel()
        if not last and open_share > _OPEN_SHARE:
            self._too_coarse = precision
            return False
        self._sorted_before = last and open_share > _SORTED_SHARE
        if self._sorted_before:
            self._sort_exactly(tile, *unlisted)
            return True
        counted = _Counted(self.query, self.good, tile, precision, unlisted, keys_BU, intervals)
        self.before_BR += counted.decided()
        for items in counted.items():
            counted.decide(*items, self.before_BR)
        return True

    def _open_of_few(self, tile: Tile, precision: Precision) -> float:
        """As of a whole block, of its first queries: the share of pairs that are left open, about."""
        keys_bU = _sort_rows(tile.keys(part(self.query, 0, _FEW), precision))
        return self._intervals(tile, keys_bU, precision).items() / keys_bU.numel()

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

    def _intervals(self, tile: Tile, keys_BU: Tensor, precision: Precision) -> Intervals:
        if self._bounds is None or self._bounds[:2] != (precision, tile.scale):
            self._bounds = (precision, tile.scale, *self._keys_around(tile, precision))
        low_BR, high_BR = (bound_BR[: len(keys_BU)] for bound_BR in self._bounds[2:])
        return _find(keys_BU, low_BR, high_BR, self.good.number_B[: len(keys_BU)])

    def _keys_around(self, tile: Tile, precision: Precision) -> tuple[Tensor, Tensor]:
        """Keys below the first that are undecided for each good image, and below the first after them: (B,
        R)."""
        distance_BR = torch.from_numpy(self.good.distance_BR)
        place_BR = places(distance_BR, self.query.norms.cpu(), tile.metric, tile.scale)
        bound = place_bound(self.query.features.shape[1], precision)
        limit = (1 << (torch.iinfo(precision.integer).bits - COLUMN_BITS - 1)) - 1

        def key(step_BR: Tensor) -> Tensor:
            return step_BR.clamp_(-limit, limit).to(precision.integer).mul_(1 << COLUMN_BITS)

        low_BR = key(((place_BR - bound) * precision.steps).ceil_())
        return low_BR, key(((place_BR + bound) * precision.steps).floor_().add_(1))


def _take_out(keys_BU: Tensor, query_rows: IntArray, rows: IntArray) -> None:
    """Give images that are not counted the largest key, which no search reaches."""
    at = (torch.from_numpy(query_rows).to(keys_BU.device), torch.from_numpy(rows).to(keys_BU.device))
    keys_BU[at] = torch.iinfo(keys_BU.dtype).max


def _sort_rows(keys_BU: Tensor) -> Tensor:
    """Ascending rows, in place on the CPU, where NumPy's vectorised sort is several times faster than
    torch's."""
    if keys_BU.device.type != "cpu":
        return keys_BU.sort(dim=1).values
    keys_BU.numpy().sort(axis=1)
    return keys_BU


def _find(keys_BU: Tensor, low_BR: Tensor, high_BR: Tensor, number_B: IntArray) -> Intervals:
    """Per row: how many keys are below each low, and below each high bound."""
    if keys_BU.device.type != "cpu":
        return _find_on_device(keys_BU, low_BR, high_BR, number_B)
    start_BR = np.full(low_BR.shape, keys_BU.shape[1], dtype=np.int64)
    stop_BR = start_BR.copy()
    keys, low, high = keys_BU.numpy(), low_BR.numpy(), high_BR.numpy()
    for b, number in enumerate(number_B):
        start = keys[b].searchsorted(low[b, :number])
        # Mostly the next key lies beyond the interval, and the second search would find the first's answer.
        unclear = (keys[b].take(start, mode="clip") < high[b, :number]).nonzero()[0]
        start_BR[b, :number] = stop_BR[b, :number] = start
        if len(unclear):
            stop_BR[b, unclear] = keys[b].searchsorted(high[b, unclear])
    return Intervals(start_BR, stop_BR)


def _find_on_device(keys_BU: Tensor, low_BR: Tensor, high_BR: Tensor, number_B: IntArray) -> Intervals:
    """The same in two calls. Their results are read: host syncs on a GPU."""
    padding = np.arange(low_BR.shape[1]) >= number_B[:, None]
    found = []
    for bound_BR in (low_BR, high_BR):
        at_BR = torch.searchsorted(keys_BU, bound_BR.to(keys_BU.device)).cpu().numpy()
        at_BR[padding] = keys_BU.shape[1]
        found.append(at_BR)
    return Intervals(*found)


class _Counted:
    """One block and one tile after the search."""

    def __init__(
        self,
        query: ImageSet,
        good: GoodImages,
        tile: Tile,
        precision: Precision,
        unlisted: tuple[IntArray, IntArray],
        keys_BU: Tensor,
        intervals: Intervals,
    ) -> None:
        self.query, self.good, self.tile, self.precision = query, good, tile, precision
        self.keys_BU, self.intervals = keys_BU, intervals
        self.weight_BU: IntArray | None = None
        if tile.member_N is not None:
            self.weight_BU, self.unlisted_members = _weights(tile, len(query), *unlisted)

    def decided(self) -> IntArray:
        """(B, R) negatives that the places alone put before each good image."""
        if self.weight_BU is None:
            return self.intervals.start_BR
        row_BU = self.keys_BU.cpu().numpy() & ((1 << COLUMN_BITS) - 1)
        running = np.zeros((len(row_BU), row_BU.shape[1] + 1), dtype=np.int64)
        np.cumsum(np.take_along_axis(self.weight_BU, row_BU, axis=1), axis=1, out=running[:, 1:])
        return np.take_along_axis(running, self.intervals.start_BR, axis=1)

    def items(self) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
        """Undecided pairs in chunks: query row, place in the sorted keys, first good image it is undecided
        for."""
        fresh_BR = self.intervals.fresh_BR
        b, r = (self.intervals.stop_BR > fresh_BR).nonzero()
        first, length = fresh_BR[b, r], (self.intervals.stop_BR - fresh_BR)[b, r]
        chunk = np.cumsum(length) // _CHUNK_ITEMS
        cuts = np.flatnonzero(np.diff(chunk)) + 1
        for some in np.split(np.arange(len(b)), cuts):
            if len(some):
                within = _counted_up(length[some])
                row, r0, at = (np.repeat(x[some], length[some]) for x in (b, r, first))
                yield row, at + within, r0

    def decide(self, row_I: IntArray, at_I: IntArray, r0_I: IntArray, before_BR: IntArray) -> None:
        """Add the items that exactly come before good images which `decided` did not count them for."""
        device = self.keys_BU.device
        query_rows = torch.from_numpy(row_I).to(device)
        keys_I = self.keys_BU[query_rows, torch.from_numpy(at_I).to(device)]
        rows = keys_I.long() & ((1 << COLUMN_BITS) - 1)
        u_I = rows.cpu().numpy()
        weight_I = np.ones_like(u_I) if self.weight_BU is None else self.weight_BU[row_I, u_I]
        width = self.keys_BU.shape[1] + 1
        base = np.arange(len(before_BR))[:, None] * width
        # Good images from r1 on have the item counted already; from `after` on it is nearer than they are.
        r1_I = (base + self.intervals.start_BR).ravel().searchsorted(row_I * width + at_I, side="right")
        r1_I -= row_I * before_BR.shape[1]
        tie_I, after_I = self._between(row_I, query_rows, rows, r0_I, r1_I)
        move(before_BR, row_I, weight_I, r1_I, after_I)
        row, r, tied = ties(row_I, tie_I, after_I)
        if len(row):
            np.add.at(before_BR, (row, r), self._listed_before(row, u_I[tied], self.good.index_BR[row, r]))

    def _between(
        self, row_I: IntArray, query_rows: Tensor, rows: Tensor, low_I: IntArray, high_I: IntArray
    ) -> tuple[IntArray, IntArray]:
        """First good image in low..high - 1 that is not nearer than each item, first that is farther.

        In float32 a sum in a tree separates most; the exact distance is for what it leaves and for ties.
        """
        good_BR = self.good.distance_BR
        if self.precision is not DOUBLE:
            near, error = (
                x.cpu().numpy() for x in self.tile.near(self.query, query_rows, rows, self.precision)
            )
            low_I = bisect(good_BR, row_I, low_I, high_I, near - error, right=False)
            high_I = bisect(good_BR, row_I, low_I, high_I, near + error, right=True)
        tie_I, after_I = low_I.copy(), high_I.copy()
        open_i = np.flatnonzero(low_I < high_I)
        if len(open_i):
            chosen = torch.from_numpy(open_i).to(rows.device)
            exact_i = self.tile.exact(self.query, query_rows[chosen], rows[chosen]).cpu().numpy()
            low_i, high_i, row_i = low_I[open_i], high_I[open_i], row_I[open_i]
            tie_I[open_i] = bisect(good_BR, row_i, low_i, high_i, exact_i, right=False)
            after_I[open_i] = bisect(good_BR, row_i, low_i, high_i, exact_i, right=True)
        return tie_I, after_I

    def _listed_before(self, row: IntArray, u: IntArray, index: IntArray) -> IntArray:
        """How many listed negatives among the copies of row u have a smaller global index."""
        position = self.tile.index_N.searchsorted(index)
        if self.tile.member_N is None:
            return (u < position).astype(np.int64)
        N, U = len(self.tile.index_N), self.keys_BU.shape[1]
        copies = _between(self.tile.member_N, u * N, u * N + position)
        start = (row * U + u) * N
        return copies - _between(self.unlisted_members, start, start + position)


def _before(
    distance_N: NDArray[np.float64],
    sorted_N: NDArray[np.float64],
    good_R: NDArray[np.float64],
    position_R: IntArray,
) -> IntArray:
    """How many images come before each good one at `good_R`: nearer, or as near and of a lower position."""
    first_R = sorted_N.searchsorted(good_R)
    tied = np.flatnonzero(sorted_N.searchsorted(good_R, side="right") > first_R)
    for value in np.unique(good_R[tied]):
        own = tied[good_R[tied] == value]
        first_R[own] += np.flatnonzero(distance_N == value).searchsorted(position_R[own])
    return first_R


def move(
    before_BR: IntArray, row_I: IntArray, weight_I: IntArray, counted_I: IntArray, first_I: IntArray
) -> None:
    """Items that are counted for the good images from `counted_I` on become so from `first_I` on."""
    step = np.zeros((len(before_BR), before_BR.shape[1] + 1), dtype=np.int64)
    np.add.at(step, (row_I, first_I), weight_I)
    np.subtract.at(step, (row_I, counted_I), weight_I)
    before_BR += step.cumsum(axis=1)[:, :-1]


def ties(row_I: IntArray, tie_I: IntArray, after_I: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """The good images tie_I ... after_I - 1 of every item, one by one: row, good image, item."""
    count_I = after_I - tie_I
    item = np.repeat(np.arange(len(row_I)), count_I)
    return row_I[item], tie_I[item] + _counted_up(count_I), item


def _weights(
    tile: Tile, queries: int, query_rows: IntArray, positions: IntArray
) -> tuple[IntArray, IntArray]:
    """(B, U) listed negatives behind every row of a tile of merged copies, and the unlisted images as
    sorted numbers (query * U + row) * N + position."""
    rows, U = tile.row_N[positions], len(tile.norms)
    weight_BU = np.tile(np.bincount(tile.row_N, minlength=U), (queries, 1))
    np.subtract.at(weight_BU, (query_rows, rows), 1)
    return weight_BU, np.sort((query_rows * U + rows) * len(tile.index_N) + positions)


def _between(ascending: IntArray, start: IntArray, stop: IntArray) -> IntArray:
    return ascending.searchsorted(stop) - ascending.searchsorted(start)


def _counted_up(lengths: IntArray) -> IntArray:
    """0, 1, ..., length - 1 for every length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)


def bisect(
    sorted_BR: NDArray[np.float64],
    row_I: IntArray,
    low_I: IntArray,
    high_I: IntArray,
    value_I: NDArray[np.float64],
    *,
    right: bool,
) -> IntArray:
    """As numpy.searchsorted in sorted_BR[row][low:high], for every item its own row and range."""
    low_I, high_I = low_I.copy(), high_I.copy()
    while (open_I := low_I < high_I).any():
        middle_I = (low_I + high_I) // 2
        found_I = sorted_BR[row_I, np.minimum(middle_I, sorted_BR.shape[1] - 1)]
        below_I = found_I <= value_I if right else found_I < value_I
        low_I = np.where(open_I & below_I, middle_I + 1, low_I)
        high_I = np.where(open_I & ~below_I, middle_I, high_I)
    return low_I
