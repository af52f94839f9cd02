"""Which images belong to which identity, as flat arrays: a million identities are three arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ShardError


@dataclass(frozen=True, eq=False)
class IdentityTable:
    """Identity i has pid `pids[i]` and the samples `first[i] ... first[i] + count[i] - 1`; all (I,) int64.

    `pids` is sorted. Junk (-1) and distractors (0) have entries too, where a split holds them.
    """

    pids: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def of_pids(cls, pids: ArrayLike) -> "IdentityTable":
        """From the pid of every sample, (N,), equal pids adjacent. Raises ShardError where they are not."""
        pids_N = np.asarray(pids, np.int64)
        first = np.flatnonzero(np.r_[len(pids_N) > 0, pids_N[1:] != pids_N[:-1]])
        count = np.diff(np.r_[first, len(pids_N)])
        by_pid = np.argsort(pids_N[first], kind="stable")
        table = cls(pids_N[first][by_pid], first[by_pid].astype(np.int64), count[by_pid].astype(np.int64))
        twice = np.flatnonzero(table.pids[1:] == table.pids[:-1])
        if len(twice):
            raise ShardError(
                f"the images of identity {table.pids[twice[0]]} are not adjacent; convert the data set again"
            )
        return table

    def __len__(self) -> int:
        return len(self.pids)

    def images_of(self, pid: int) -> NDArray[np.int64]:
        """The sample numbers of an identity. Raises KeyError for one that is not here."""
        position = int(np.searchsorted(self.pids, pid))
        if position == len(self.pids) or self.pids[position] != pid:
            raise KeyError(pid)
        return np.arange(self.first[position], self.first[position] + self.count[position], dtype=np.int64)
