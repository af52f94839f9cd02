"""Which gallery images are good, junk or listed for each query, by sorted identity
labels: no Q x G matrix of booleans."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JUNK_PID = -1

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """Gallery labels of all ranks, with the non-junk images sorted by identity."""

    pids: IntArray
    camids: IntArray
    by_pid: IntArray
    sorted_pids: IntArray

    @classmethod
    def build(cls, pids: IntArray, camids: IntArray) -> "GalleryIndex":
        usable = np.flatnonzero(pids != JUNK_PID)
        by_pid = usable[np.argsort(pids[usable], kind="stable")]
        return cls(pids=pids, camids=camids, by_pid=by_pid, sorted_pids=pids[by_pid])


@dataclass(frozen=True, eq=False)
class BlockPairs:
    """Same-identity pairs of a block of B queries: parallel arrays of block row and global gallery index.

    listed_B: how many gallery images stay in each query's ranked list, junk taken out.
    """

    good_row: IntArray
    good_index: IntArray
    junk_row: IntArray
    junk_index: IntArray
    listed_B: IntArray


def block_pairs(query_pids_B: IntArray, query_camids_B: IntArray, gallery: GalleryIndex) -> BlockPairs:
    """Good: the query's pid in another camera. Junk: pid -1 (never in the index) and
    the query's pid in its own camera."""
    first = np.searchsorted(gallery.sorted_pids, query_pids_B, side="left")
    count = np.searchsorted(gallery.sorted_pids, query_pids_B, side="right") - first
    row = np.repeat(np.arange(len(query_pids_B)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    index = gallery.by_pid[np.repeat(first, count) + within]
    same_camera = gallery.camids[index] == query_camids_B[row]
    junk_row = row[same_camera]
    return BlockPairs(
        good_row=row[~same_camera],
        good_index=index[~same_camera],
        junk_row=junk_row,
        junk_index=index[same_camera],
        listed_B=len(gallery.by_pid) - np.bincount(junk_row, minlength=len(query_pids_B)),
    )
