"""Who shares an identity with whom, in O(N) memory.

Names: N = rows of all ranks, b = rows of a block, P = the largest number of rows one identity has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import RankLayout, gather_rows


@dataclass(frozen=True)
class Positives:
    """The rows of each identity as one contiguous range of a stable sort by label.

    order_N: global row of each sorted place. start_N: first place of the row's identity. count_N: rows the
    identity has, the row itself included. All int64. widest: max of count_N (0 when N = 0).
    """

    order_N: Tensor
    start_N: Tensor
    count_N: Tensor
    widest: int

    @property
    def positives_N(self) -> Tensor:
        """Positives of each row as an anchor: same identity, itself excluded. int64."""
        return self.count_N - 1

    @property
    def negatives_N(self) -> Tensor:
        """Negatives of each row as an anchor. int64."""
        return self.count_N.shape[0] - self.count_N

    @property
    def valid_N(self) -> Tensor:
        """Anchors a loss counts: at least one positive and one negative. bool."""
        return (self.positives_N > 0) & (self.negatives_N > 0)

    def of_rows(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Same-identity rows of consecutive rows: (rows_b int64, index_bP int64 ascending, is_positive_bP
        bool).

        The row itself is in its list, and fills up lists shorter than P; both are marked not positive.
        """
        rows_b = torch.arange(rows.start, rows.stop, device=self.order_N.device)
        place_P = torch.arange(self.widest, device=rows_b.device)
        place_bP = self.start_N[rows, None] + place_P
        inside_bP = place_P < self.count_N[rows, None]
        index_bP = self.order_N[place_bP.clamp_(max=self.order_N.shape[0] - 1)]
        index_bP = torch.where(inside_bP, index_bP, rows_b[:, None])
        return rows_b, index_bP, index_bP != rows_b[:, None]


def find_positives(labels_N: Tensor) -> Positives:
    """Sort the labels once. One host sync (the widest identity's size)."""
    sorted_N, order_N = torch.sort(labels_N, stable=True)
    start_N = torch.searchsorted(sorted_N, labels_N)
    count_N = torch.searchsorted(sorted_N, labels_N, right=True).sub_(start_N)
    widest = int(count_N.max()) if labels_N.shape[0] else 0
    return Positives(order_N, start_N, count_N, widest)


def count_valid_anchors(labels_B: Tensor, layout: RankLayout) -> Tensor:
    """How many anchors of all ranks a loss counts, 0-d int64. Every rank takes part (a collective:
    labels)."""
    return find_positives(gather_rows(labels_B, layout)).valid_N.sum()
