"""Rows below each good image of a block, by sorting what a tile's product gives: for long lists.

Shapes: B queries of the block, U rows of a tile, R the largest number of good images of a query, I items.
A key is an integer: a place, and the row's number in its last bits (`Tile.keys`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskreid_dist.retrieval.distance import COLUMN_BITS, Precision, place_bound
from maskreid_dist.retrieval.items import CHUNK_ITEMS, Items, counted_up
from maskreid_dist.retrieval.pairs import IntArray

_MANY_BOUNDS = 128  # of a row


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


def sorted_bounds(place_BR: Tensor, dimensions: int, precision: Precision) -> tuple[Tensor, Tensor]:
    """Keys below the first that are undecided for each good image, and below the first after them: (B, R)."""
    bound = place_bound(dimensions, precision)
    limit = (1 << (torch.iinfo(precision.integer).bits - COLUMN_BITS - 1)) - 1

    def key(step_BR: Tensor) -> Tensor:
        return step_BR.clamp_(-limit, limit).to(precision.integer).mul_(1 << COLUMN_BITS)

    low_BR = key(((place_BR - bound) * precision.steps).ceil_())
    return low_BR, key(((place_BR + bound) * precision.steps).floor_().add_(1))


class SortedPlaces:
    """What sorted keys tell, and what they leave open."""

    def __init__(self, keys_BU: Tensor, low_BR: Tensor, high_BR: Tensor, number_B: IntArray) -> None:
        """keys_BU: overwritten; bounds as from `sorted_bounds`; number_B: good images of each query."""
        self._keys_BU = _sort_rows(keys_BU)
        self._intervals = _find(self._keys_BU, low_BR, high_BR, number_B)
        self.open = self._intervals.items()

    def before(self, weight_BU: IntArray | None) -> IntArray:
        """(B, R) negatives that the places alone put before each good image; weight_BU: how many each row
        stands for."""
        if weight_BU is None:
            return self._intervals.start_BR
        row_BU = self._keys_BU.cpu().numpy() & ((1 << COLUMN_BITS) - 1)
        running = np.zeros((len(row_BU), row_BU.shape[1] + 1), dtype=np.int64)
        np.cumsum(np.take_along_axis(weight_BU, row_BU, axis=1), axis=1, out=running[:, 1:])
        return np.take_along_axis(running, self._intervals.start_BR, axis=1)

    def items(self) -> Iterator[Items]:
        """Undecided pairs, in chunks."""
        fresh_BR = self._intervals.fresh_BR
        b, r = (self._intervals.stop_BR > fresh_BR).nonzero()
        first, length = fresh_BR[b, r], (self._intervals.stop_BR - fresh_BR)[b, r]
        chunk = np.cumsum(length) // CHUNK_ITEMS
        cuts = np.flatnonzero(np.diff(chunk)) + 1
        for some in np.split(np.arange(len(b)), cuts):
            if len(some):
                row_I, undecided_I, at_I = (np.repeat(x[some], length[some]) for x in (b, r, first))
                yield self._items(row_I, at_I + counted_up(length[some]), undecided_I)

    def _items(self, row_I: IntArray, at_I: IntArray, undecided_I: IntArray) -> Items:
        """at_I: places in the sorted keys."""
        at = (torch.from_numpy(x).to(self._keys_BU.device) for x in (row_I, at_I))
        u_I = (self._keys_BU[tuple(at)].long() & ((1 << COLUMN_BITS) - 1)).cpu().numpy()
        start_BR = self._intervals.start_BR
        width = self._keys_BU.shape[1] + 1
        base = np.arange(len(start_BR))[:, None] * width
        counted_I = (base + start_BR).ravel().searchsorted(row_I * width + at_I, side="right")
        return Items(row_I, u_I, undecided_I, counted_I - row_I * start_BR.shape[1])


def _sort_rows(keys_BU: Tensor) -> Tensor:
    """Ascending rows, in place on the CPU, where NumPy's vectorised sort is several times faster than
    torch's."""
    if keys_BU.device.type != "cpu":
        return keys_BU.sort(dim=1).values
    keys_BU.numpy().sort(axis=1)
    return keys_BU


def _find(keys_BU: Tensor, low_BR: Tensor, high_BR: Tensor, number_B: IntArray) -> Intervals:
    """Per row: how many keys are below each low, and below each high bound."""
    # torch searches a whole block in one call, but every bound anew: NumPy goes on from the last one.
    if keys_BU.device.type == "cpu" and low_BR.shape[1] > _MANY_BOUNDS:
        return _find_in_rows(keys_BU.numpy(), low_BR.numpy(), high_BR.numpy(), number_B)
    padding = np.arange(low_BR.shape[1]) >= number_B[:, None]
    found = []
    for bound_BR in (low_BR, high_BR):
        at_BR = torch.searchsorted(keys_BU, bound_BR.to(keys_BU.device)).cpu().numpy()
        at_BR[padding] = keys_BU.shape[1]
        found.append(at_BR)
    return Intervals(*found)


def _find_in_rows(keys_BU: IntArray, low_BR: IntArray, high_BR: IntArray, number_B: IntArray) -> Intervals:
    """The same, row by row."""
    start_BR = np.full(low_BR.shape, keys_BU.shape[1], dtype=np.int64)
    stop_BR = start_BR.copy()
    for b, number in enumerate(number_B):
        start = keys_BU[b].searchsorted(low_BR[b, :number])
        # Mostly the next key lies beyond the interval, and the second search would find the first's answer.
        unclear = (keys_BU[b].take(start, mode="clip") < high_BR[b, :number]).nonzero()[0]
        start_BR[b, :number] = stop_BR[b, :number] = start
        if len(unclear):
            stop_BR[b, unclear] = keys_BU[b].searchsorted(high_BR[b, unclear])
    return Intervals(start_BR, stop_BR)
