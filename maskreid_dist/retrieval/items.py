"""Items: pairs of a query and a row of a tile that a product leaves undecided, and their places among the
query's good images.

Shapes: B queries of the block, R the largest number of good images of a query, I items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.retrieval.pairs import IntArray

CHUNK_ITEMS = 1 << 17  # compared exactly at once


@dataclass(frozen=True, eq=False)
class Items:
    """Query row_I and row u_I of the tile; undecided_I: first good image that the pair is undecided for;
    counted_I: the first that it is counted for already. All (I,)."""

    row_I: IntArray
    u_I: IntArray
    undecided_I: IntArray
    counted_I: IntArray


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
    return row_I[item], tie_I[item] + counted_up(count_I), item


def counted_up(lengths: IntArray) -> IntArray:
    """0, 1, ..., length - 1 for every length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)


def bisect(
    sorted_BR: NDArray[np.floating],
    row_I: IntArray,
    low_I: IntArray,
    high_I: IntArray,
    value_I: NDArray[np.floating],
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
