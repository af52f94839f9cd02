"""Rows below each good image of a block, by comparing what a tile's product gives with each: for queries of
few good images, on a CPU.

Shapes: B queries of the block, U rows of a tile, R the largest number of good images of a query, I items.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import Precision, product_bound
from maskreid_dist.retrieval.items import CHUNK_ITEMS, Items, bisect
from maskreid_dist.retrieval.pairs import IntArray

Bounds = NDArray[np.floating]
MOST_GOOD = 255  # images of a query: they are counted in a byte


def compared_bounds(place_BR: Tensor, dimensions: int, precision: Precision) -> tuple[Bounds, Bounds]:
    """(B, R) in the product's dtype: what is less than the first comes before a good image, what is not less
    than the second comes after it."""
    bound = product_bound(dimensions, precision)

    def beyond(side: int) -> Bounds:
        bound_BR = ((place_BR + side * bound) * precision.steps).to(precision.dtype).numpy()
        # A step outward is more than rounding to the dtype took away.
        found: Bounds = np.nextafter(bound_BR, bound_BR.dtype.type(side * np.inf))
        return found

    return beyond(-1), beyond(1)


class ComparedPlaces:
    """What comparisons tell, and what they leave open."""

    def __init__(self, product_BU: Tensor, low_BR: Bounds, high_BR: Bounds, number_B: IntArray) -> None:
        """product_BU: infinite where a row is not listed; bounds as from `compared_bounds`; number_B: good
        images of each query."""
        self._product_BU: NDArray[np.floating] = product_BU.numpy()
        self._low_BR, self._high_BR, self._number_B = low_BR, high_BR, number_B
        self._before_BR = np.zeros(low_BR.shape, dtype=np.int64)
        self._open_BU: NDArray[np.bool_] = np.zeros(product_BU.shape, dtype=np.bool_)
        # One piece of memory for all queries: new pages would cost as much as the comparisons.
        self._reached_RU = np.empty((int(number_B.max(initial=0)), product_BU.shape[1]), dtype=np.bool_)
        for b in np.flatnonzero(number_B).tolist():
            self._count(b)
        self.open = np.count_nonzero(self._open_BU)

    def _count(self, b: int) -> None:
        number, place_U = int(self._number_B[b]), self._product_BU[b]
        reached_RU = np.less_equal(self._low_BR[b, :number, None], place_U, out=self._reached_RU[:number])
        reached_U = np.add.reduce(reached_RU.view(np.uint8), axis=0, dtype=np.uint8).astype(np.intp)
        rows = np.bincount(reached_U, minlength=number + 1)
        self._before_BR[b, :number] = rows[:number].cumsum()
        # Of the good images whose low bounds it has reached, the last has the greatest high bound.
        high = np.concatenate([[-np.inf], self._high_BR[b, :number]], dtype=place_U.dtype)
        np.less(place_U, high.take(reached_U), out=self._open_BU[b])

    def before(self, weight_BU: IntArray | None) -> IntArray:
        """(B, R) negatives that the places alone put before each good image; weight_BU: None, as every row
        stands for one."""
        assert weight_BU is None, "rows of merged copies are sorted"
        return self._before_BR

    def items(self) -> Iterator[Items]:
        """Undecided pairs, in chunks."""
        open_I = np.flatnonzero(self._open_BU)
        for start in range(0, len(open_I), CHUNK_ITEMS):
            row_I, u_I = np.divmod(open_I[start : start + CHUNK_ITEMS], self._open_BU.shape[1])
            place_I, none_I = self._product_BU[row_I, u_I], np.zeros_like(row_I)
            counted_I = bisect(self._low_BR, row_I, none_I, self._number_B[row_I], place_I, right=True)
            undecided_I = bisect(self._high_BR, row_I, none_I, counted_I, place_I, right=True)
            yield Items(row_I, u_I, undecided_I, counted_I)
