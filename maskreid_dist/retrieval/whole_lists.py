"""Ranks of the good images of queries that have very many: whole lists are sorted, and good images read off.

Shapes: B queries of a block, G gallery images, U of a tile, R good images of a query, M members of runs.
For a query of thousands of good images most of the gallery lies too near to one of them for float32, and an
exact distance for each and a search of it in each tile take longer than to sort. So the places of all images
(`distance.py`) are computed in float64, as keys of a place, the image's number and whether it is good, and
each list is sorted. Neighbours whose places differ by more than twice the bound are in order. Those nearer to
each other make a run; of a run with a good image the exact distances decide. So the ranks are those of
`counting.py`, bit for bit. On a CPU, where one process holds the gallery.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import (
    DOUBLE,
    Metric,
    Precision,
    gallery_operand,
    pair_distances,
    place_bound,
    query_operand,
    tile_scale,
)
from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.pairs import JUNK_PID, BlockPairs, IntArray

MANY_GOOD = 64  # good images a query, on average, from which on whole lists are sorted,
MANY_SHARE = 1 / 256  # if they are so much of the gallery: about fewer float32 may tell all
_LARGEST_GALLERY = 1 << 17  # images: the keys of 128 queries are 128 MiB then
_TILE = 1 << 13  # images multiplied at once
_HELD_ELEMENTS = 1 << 24  # 128 MiB of a gallery's operand, which is made anew for every block beyond it
_OPEN_SHARE = 1 / 64  # of a block's pairs in runs; above it `counting.py` is cheaper


def sorts_whole_lists(query: ImageSet, gallery: ImageSet, pairs: list[BlockPairs]) -> bool:
    """Whether lists are best sorted as a whole; pairs: of all queries."""
    good = sum(len(block.good_row) for block in pairs) / max(len(query), 1)
    devices = {query.features.device.type, gallery.features.device.type}
    many = good >= max(MANY_GOOD, MANY_SHARE * len(gallery))
    return many and devices == {"cpu"} and len(gallery) <= _LARGEST_GALLERY


class WholeLists:
    """The lists of a gallery that this process holds."""

    def __init__(self, query: ImageSet, gallery: ImageSet, metric: Metric, rows: int) -> None:
        """query: all of them; rows: of a block, at most."""
        self.gallery, self.metric = gallery, metric
        self.scale = tile_scale(gallery.norms, query.norms, metric)
        self._shift = len(gallery).bit_length() + 1  # the image's number, and a bit that says it is good
        steps = 0.95 * 2 ** (62 - self._shift)
        self._precision = Precision(DOUBLE.dtype, DOUBLE.roundoff, DOUBLE.integer, steps)
        bound = place_bound(query.features.shape[1], self._precision)
        self._apart = int(np.ceil(2 * bound * steps) + 2) << self._shift
        self._junk = np.flatnonzero(gallery.pids == JUNK_PID)
        self._keys_BG = np.empty((rows, len(gallery)), dtype=np.int64)
        self._operands: dict[int, Tensor] = {}

    def ranks(self, query: ImageSet, pairs: BlockPairs) -> list[IntArray] | None:
        """Ascending ranks, from 1, of each query's good images; None where too much lies in runs."""
        keys_BG = self._sorted_keys(query, pairs)
        lists = [keys_BG[b, :listed] for b, listed in enumerate(pairs.listed_B.tolist())]
        at = [np.flatnonzero((list_N & 1).astype(np.bool_)) for list_N in lists]
        runs = {b: runs for b, (n, r) in enumerate(zip(lists, at, strict=True)) if (runs := self._runs(n, r))}
        if sum(len(position_M) for position_M, _ in runs.values()) > _OPEN_SHARE * keys_BG.size:
            return None
        for b, (position_M, run_M) in runs.items():
            self._decide(query, b, lists[b], position_M, run_M)
            at[b] = np.flatnonzero((lists[b] & 1).astype(np.bool_))
        return [at_R + 1 for at_R in at]

    def _sorted_keys(self, query: ImageSet, pairs: BlockPairs) -> IntArray:
        """(B, G), each row ascending; what is not listed comes last."""
        keys_BG: NDArray[np.int64] = self._keys_BG[: len(query)]
        a_BK = query_operand(query.features, query.norms, self.metric, self.scale, self._precision)
        number_G = torch.arange(len(self.gallery)) * 2
        for start in range(0, len(self.gallery), _TILE):
            b_UK = self._operand(start)
            place_BU = a_BK.new_empty(len(a_BK), len(b_UK))
            torch.mm(a_BK, b_UK.T, out=place_BU)  # `out` also keeps autocast away
            here = slice(start, start + _TILE)
            out = torch.from_numpy(keys_BG[:, here])
            torch.add(number_G[here], place_BU.to(torch.int64), alpha=1 << self._shift, out=out)
        keys_BG[pairs.good_row, pairs.good_index] += 1
        keys_BG[pairs.junk_row, pairs.junk_index] = keys_BG[:, self._junk] = np.iinfo(np.int64).max
        keys_BG.sort(axis=1)
        return keys_BG

    def _operand(self, start: int) -> Tensor:
        if start in self._operands:
            return self._operands[start]
        tile = slice(start, start + _TILE)
        features, norms = self.gallery.features[tile], self.gallery.norms[tile]
        made = gallery_operand(features, norms, self.metric, self.scale, self._precision)
        if self.gallery.features.numel() <= _HELD_ELEMENTS:
            self._operands[start] = made
        return made

    def _runs(self, list_N: IntArray, at_R: IntArray) -> tuple[IntArray, IntArray] | None:
        """Places in the list of all members of runs with a good image, and each one's run; None without."""
        before, after = at_R[at_R > 0], at_R[at_R < len(list_N) - 1]
        near = (list_N[before] - list_N[before - 1]).min(initial=self._apart) < self._apart
        near |= (list_N[after + 1] - list_N[after]).min(initial=self._apart) < self._apart
        if not near:
            return None
        run_N = np.concatenate([[0], np.cumsum(np.diff(list_N) >= self._apart)])
        size = np.bincount(run_N)
        good = np.bincount(run_N[at_R], minlength=len(size))
        position_M = np.flatnonzero(((size > 1) & (good > 0))[run_N])
        return position_M, run_N[position_M]

    def _decide(
        self, query: ImageSet, b: int, list_N: IntArray, position_M: IntArray, run_M: IntArray
    ) -> None:
        """Bring the members of each run into the order of their exact distances, then of their index."""
        key_M = list_N[position_M]
        index_M = (key_M & ((1 << self._shift) - 1)) >> 1
        sides = (query.features, query.norms), (self.gallery.features, self.gallery.norms)
        rows, columns = torch.full((len(index_M),), b), torch.from_numpy(index_M)
        exact_M = pair_distances(*sides[0], rows, *sides[1], columns, self.metric).numpy()
        list_N[position_M] = key_M[np.lexsort((index_M, exact_M, run_M))]
