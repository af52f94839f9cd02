"""Products that the chunked losses take over 1 to 4 ranks, counted block by block from what each rank would
compute; nothing is computed. `python tests/products_over_ranks.py` prints the table.

In multiples of N^2 D multiplications, that is of one product X X^T. Before the symmetry of S was used every
rank took its rows against all, in the forward and again in the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from maskreid_kernels.ranks import RankLayout
from maskreid_kernels.triangle import Triangle

ROWS = 8192


@dataclass(frozen=True)
class Products:
    """Of all ranks together, and of the rank that has most: similarities in the forward, again in the
    backward, and products of weights with rows.
    """

    forward: float
    most_forward: float
    backward: float
    most_backward: float
    gradient: float


def counted(ranks: int, rows: int = ROWS) -> Products:
    """In multiples of rows^2, every block's weights being needed."""
    split = tuple(rows // ranks + (rank < rows % ranks) for rank in range(ranks))
    x_ND, positives = torch.empty(rows, 1), SimpleNamespace(widest=4)
    forward, backward, gradient = [], [], 0
    for rank in range(ranks):
        known: Any = positives
        triangle = Triangle(x_ND, known, RankLayout(None, rank, split))
        forward.append(sum(block.area for block in triangle.share()))
        own = list(triangle.own())
        backward.append(sum(block.area for block in own))
        gradient += sum(block.area * (block.rows_count + block.columns_count) for block in own)
    whole = rows**2
    return Products(
        sum(forward) / whole,
        max(forward) / whole,
        sum(backward) / whole,
        max(backward) / whole,
        gradient / whole,
    )


def main() -> None:
    print(f"N = {ROWS}, in products X X^T: before -> now\n")
    print("| ranks | forward | of one rank | backward: S again | of one rank | weights times rows |")
    print("|---|---|---|---|---|---|")
    for ranks in range(1, 5):
        now, own = counted(ranks), 1 / ranks
        print(
            f"| {ranks} | 1 -> {now.forward:.3f} | {own:.3f} -> {now.most_forward:.3f} | "
            f"1 -> {now.backward:.3f} | {own:.3f} -> {now.most_backward:.3f} | 1 -> {now.gradient:.3f} |"
        )


if __name__ == "__main__":
    main()
