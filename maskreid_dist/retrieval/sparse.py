"""The few operations on sparse non-negative rows that re-ranking needs.

Shapes: N rows and columns, M entries.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from maskreid_dist.retrieval.group import gather_all
from maskreid_dist.retrieval.pairs import IntArray

_CHUNK_ENTRIES = 1 << 19  # entries handled at once: some 30 MiB


@dataclass(frozen=True, eq=False)
class Rows:
    """Compressed rows: row i has the entries start_N[i] to start_N[i + 1] - 1; column_M int32, value_M
    float64.

    columns: how many there are.
    """

    start_N: IntArray
    column_M: NDArray[np.int32]
    value_M: NDArray[np.float64]
    columns: int

    @classmethod
    def build(
        cls, count_N: IntArray, column_M: NDArray[np.int32], value_M: NDArray[np.float64], columns: int
    ) -> "Rows":
        return cls(np.concatenate([[0], np.cumsum(count_N)]), column_M, value_M, columns)

    @classmethod
    def join(
        cls, parts: Iterable[tuple[IntArray, NDArray[np.int32], NDArray[np.float64]]], columns: int
    ) -> "Rows":
        """Of count_N, column_M and value_M of neighbouring rows, one part after the other; may be none."""
        none = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0)
        count_N, column_M, value_M = (np.concatenate(x) for x in zip(none, *parts, strict=True))
        return cls.build(count_N, column_M, value_M, columns)

    @property
    def count_N(self) -> IntArray:
        return np.diff(self.start_N)

    def from_row(self, first: int) -> "Rows":
        """Rows `first` and later, numbered from 0."""
        start = self.start_N[first]
        return Rows(self.start_N[first:] - start, self.column_M[start:], self.value_M[start:], self.columns)

    def entries(self, row_I: IntArray) -> tuple[IntArray, IntArray]:
        """Of each of the rows asked for, its entries' numbers; and which of the I each belongs to."""
        count_I = self.count_N[row_I]
        total = int(count_I.sum())
        of_E = np.repeat(np.arange(len(row_I)), count_I)
        within_E = np.arange(total) - np.repeat(np.cumsum(count_I) - count_I, count_I)
        return self.start_N[row_I][of_E] + within_E, of_E


def transposed(rows: Rows) -> Rows:
    """Its columns as rows, their entries in ascending order."""
    order = np.argsort(rows.column_M, kind="stable")
    row_M = np.repeat(np.arange(len(rows.count_N), dtype=np.int32), rows.count_N)
    count = np.bincount(rows.column_M, minlength=rows.columns)
    return Rows.build(count, row_M[order], rows.value_M[order], len(rows.count_N))


def gathered(own: Rows, group: dist.ProcessGroup | None) -> Rows:
    """The rows of all ranks in rank order. All ranks of the group take part."""
    parts = (own.count_N, own.column_M, own.value_M)
    count, column, value = (gather_all(torch.from_numpy(part), group).numpy() for part in parts)
    return Rows.build(count, column, value, own.columns)


def mean_of_rows(rows: Rows, index_IK: IntArray) -> Rows:
    """Row i is the mean of the rows index_IK[i]."""
    K = index_IK.shape[1]
    parts = []
    size_I = rows.count_N[index_IK].sum(axis=1)
    for first, last in runs(size_I, _CHUNK_ENTRIES):
        entry_E, of_E = rows.entries(index_IK[first:last].ravel())
        keys_E = (of_E // K) * rows.columns + rows.column_M[entry_E]
        keys_M, place_E = np.unique(keys_E, return_inverse=True)
        values = np.bincount(place_E, weights=rows.value_M[entry_E], minlength=len(keys_M)) / K
        counts = np.bincount(keys_M // rows.columns, minlength=last - first)
        parts.append((counts, (keys_M % rows.columns).astype(np.int32), values))
    return Rows.join(parts, rows.columns)


def shared_mass(rows: Rows, start: int, stop: int, by_column: Rows, out: NDArray[np.float64]) -> None:
    """sum_c min(rows[i, c], other[j, c]) for i in start..stop - 1 and every j, into `out`.

    by_column: `other` transposed. out: (stop - start, J), contiguous.
    """
    J = by_column.columns
    mine = slice(rows.start_N[start], rows.start_N[stop])
    row_M = np.repeat(np.arange(stop - start), rows.count_N[start:stop])
    column_M, value_M = rows.column_M[mine], rows.value_M[mine]
    out[:] = 0.0
    shared = out.reshape(-1)
    for first, last in runs(by_column.count_N[column_M], _CHUNK_ENTRIES):
        entry_E, of_E = by_column.entries(column_M[first:last].astype(np.int64))
        least_E = np.minimum(by_column.value_M[entry_E], value_M[first:last][of_E])
        at_E = row_M[first:last][of_E] * J + by_column.column_M[entry_E]
        low, high = (int(at_E.min()), int(at_E.max()) + 1) if len(at_E) else (0, 0)
        shared[low:high] += np.bincount(at_E - low, weights=least_E, minlength=high - low)


def runs(size_N: IntArray, limit: int) -> list[tuple[int, int]]:
    """Runs of rows of about `limit` entries together, at least one row each."""
    if not len(size_N):
        return []
    of_N = (np.cumsum(size_N) - size_N) // limit
    cuts = [0, *(np.flatnonzero(np.diff(of_N)) + 1).tolist(), len(size_N)]
    return list(zip(cuts[:-1], cuts[1:], strict=True))
