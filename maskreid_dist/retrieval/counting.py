"""Ranks of the good images of a block of queries, by counting over gallery tiles.

Shapes: B queries of the block, T gallery images of a tile, R the largest number of good images of a query.
The list of a query is ordered by (distance, gallery index). Its good images are ordered among themselves
directly; what remains is to count, for each of them, the negatives that come before it. A tile's matrix
product decides all negatives whose distance differs from the good image's by more than the product's error
bound; the few others (in practice copies of an image) are compared by the exact pair distance. The count is
thus the same for every tiling and every sharding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskreid_dist.retrieval.distance import Metric, error_bound, pair_distances, tile_distances
from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.pairs import JUNK_PID, BlockPairs, IntArray

_CHUNK_COMPARISONS = 1 << 22  # elements of an (undecided negatives, R) comparison held at once


@dataclass(frozen=True, eq=False)
class GoodImages:
    """Good images per query in list order: distance_BR (float64, padded with inf),
    index_BR (global, int64), number_B."""

    distance_BR: Tensor
    index_BR: Tensor
    number_B: IntArray


@dataclass(frozen=True, eq=False)
class Tile:
    """A block of queries against consecutive gallery images, all on the queries' device;
    first: global index of column 0."""

    query: ImageSet
    gallery: ImageSet
    first: int
    metric: Metric

    def approximate(self) -> Tensor:
        """(B, T) distances, within `bound` of the exact ones."""
        q, g = self.query, self.gallery
        return tile_distances(q.features, q.norms, g.features, g.norms, self.metric)

    def bound(self) -> Tensor:
        return error_bound(self.query.norms, self.gallery.norms, self.query.features.shape[1], self.metric)

    def exact(self, rows_N: Tensor, columns_N: Tensor) -> Tensor:
        """(N,) distances of chosen pairs."""
        q, g = self.query, self.gallery
        return pair_distances(q.features, q.norms, rows_N, g.features, g.norms, columns_N, self.metric)


def local_good_distances(tile: Tile, pairs: BlockPairs) -> Tensor:
    """Exact distance of every good pair whose gallery image is in the tile, 0 for the
    others: (P,) float64, on the CPU."""
    column = pairs.good_index - tile.first
    here = np.flatnonzero((column >= 0) & (column < len(tile.gallery)))
    distance_P = torch.zeros(len(column), dtype=torch.float64)
    rows, columns = torch.from_numpy(pairs.good_row[here]), torch.from_numpy(column[here])
    distance_P[torch.from_numpy(here)] = tile.exact(rows, columns).cpu()
    return distance_P


def order_good_images(pairs: BlockPairs, distance_P: Tensor, rows: int, device: torch.device) -> GoodImages:
    """Sort each query's good images by (distance, gallery index) and lay them out as padded rows."""
    distance = distance_P.numpy()
    order = np.lexsort((pairs.good_index, distance, pairs.good_row))
    row = pairs.good_row[order]
    number_B = np.bincount(row, minlength=rows)
    slot = np.arange(len(row)) - (np.cumsum(number_B) - number_B)[row]
    distance_BR = np.full((rows, int(number_B.max(initial=0))), np.inf)
    index_BR = np.zeros(distance_BR.shape, dtype=np.int64)
    distance_BR[row, slot] = distance[order]
    index_BR[row, slot] = pairs.good_index[order]
    return GoodImages(
        torch.from_numpy(distance_BR).to(device), torch.from_numpy(index_BR).to(device), number_B
    )


def count_before(tile: Tile, pairs: BlockPairs, good: GoodImages) -> Tensor:
    """Negatives of the tile that come before each good image in its query's list: (B, R) int64."""
    if not good.index_BR.numel():
        return torch.zeros_like(good.index_BR)
    distance_BT = tile.approximate()
    _unlist(distance_BT, tile, pairs)
    bound_B1 = tile.bound()[:, None]
    low_BR, high_BR = good.distance_BR - bound_B1, good.distance_BR + bound_B1
    before_BR = count_below(distance_BT, low_BR, good.number_B)
    open_BR = count_below(distance_BT, high_BR, good.number_B) != before_BR
    rows_b = open_BR.any(dim=1).nonzero().flatten()  # host sync on a GPU
    if len(rows_b):
        before_BR[rows_b] += _decide(tile, good, rows_b, distance_BT[rows_b], low_BR[rows_b], high_BR[rows_b])
    return before_BR


def _unlist(distance_BT: Tensor, tile: Tile, pairs: BlockPairs) -> None:
    """Put junk, which has no place in the list, and good images, ordered already, at infinity."""
    device = distance_BT.device
    distance_BT[:, torch.from_numpy(tile.gallery.pids == JUNK_PID).to(device)] = torch.inf
    for row, index in ((pairs.good_row, pairs.good_index), (pairs.junk_row, pairs.junk_index)):
        column = index - tile.first
        here = (column >= 0) & (column < len(tile.gallery))
        rows, columns = torch.from_numpy(row[here]).to(device), torch.from_numpy(column[here]).to(device)
        distance_BT[rows, columns] = torch.inf


def _decide(
    tile: Tile, good: GoodImages, rows_b: Tensor, distance_bT: Tensor, low_bR: Tensor, high_bR: Tensor
) -> Tensor:
    """Of the negatives within the error bound of a good image, those that exactly
    come before it: (b, R) int64."""
    inside_bT = torch.searchsorted(low_bR, distance_bT, right=True) != torch.searchsorted(
        high_bR, distance_bT, right=True
    )
    before_bR = torch.zeros(low_bR.shape, dtype=torch.int64, device=low_bR.device)
    step = max(1, _CHUNK_COMPARISONS // low_bR.shape[1])
    at_row, at_column = inside_bT.nonzero(as_tuple=True)
    for row_n, column_n in zip(at_row.split(step), at_column.split(step), strict=True):
        exact_n1 = tile.exact(rows_b[row_n], column_n)[:, None]
        index_n1 = tile.first + column_n[:, None]
        approximate_n1 = distance_bT[row_n, column_n][:, None]
        good_distance_nR, good_index_nR = good.distance_BR[rows_b[row_n]], good.index_BR[rows_b[row_n]]
        undecided_nR = (approximate_n1 >= low_bR[row_n]) & (approximate_n1 < high_bR[row_n])
        ties_nR = (exact_n1 == good_distance_nR) & (index_n1 < good_index_nR)
        first_nR = (exact_n1 < good_distance_nR) | ties_nR
        before_bR.index_add_(0, row_n, (undecided_nR & first_nR).long())
    return before_bR


def count_below(values_BT: Tensor, threshold_BR: Tensor, number_B: IntArray) -> Tensor:
    """How many values of row b are below each of its first number_B[b] thresholds (ascending): (B, R) int64.

    Columns from number_B[b] on are padding and hold no meaning.
    """
    if values_BT.is_cuda:
        return _count_below_by_search(values_BT, threshold_BR)
    values, thresholds = values_BT.numpy(), threshold_BR.numpy()
    below = np.zeros(thresholds.shape, dtype=np.int64)
    for b, number in enumerate(number_B):
        # One vectorised comparison over a row in cache beats a binary search per value for the field's R of 5
        # to 50.
        row = values[b]
        row = row[row < thresholds[b, number - 1]]
        for r in range(number):
            below[b, r] = np.count_nonzero(row < thresholds[b, r])
    return torch.from_numpy(below)


def _count_below_by_search(values_BT: Tensor, threshold_BR: Tensor) -> Tensor:
    """The same for a GPU: every value finds its place among the thresholds, places
    are counted, counts summed up."""
    rows, bins = threshold_BR.shape[0], threshold_BR.shape[1] + 1
    place_BT = torch.searchsorted(threshold_BR.contiguous(), values_BT, right=True)
    place_BT += torch.arange(rows, device=values_BT.device)[:, None] * bins
    return torch.bincount(place_BT.flatten(), minlength=rows * bins).view(rows, bins).cumsum(dim=1)[:, :-1]
