"""What the tests of the Triton programs on a GPU run: losses, precision presets and batches.

The batches leave no choice to rounding: every anchor's nearest negative, and the negatives inside the sparse
margins, are apart from the rest by far more than the coarsest preset is wrong. So a program that is right is
close to float64 under every preset, and one that forgets a tile is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

import maskreid_kernels as mk

IMAGES = 5  # per identity
Loss = Callable[..., Tensor]
Distance = Literal["euclidean", "squared_euclidean", "cosine"]


def batch_hard(distance: Distance) -> Loss:
    return lambda x, y, **options: mk.batch_hard_loss(x, y, margin="soft", distance=distance, **options)


def ranking(**words: Any) -> Loss:
    return lambda x, y, **options: mk.ranking_loss(x, y, **words, **options)


LOSSES: dict[str, Loss] = {
    "batch_hard": batch_hard("euclidean"),
    "batch_hard_squared": batch_hard("squared_euclidean"),
    "batch_hard_cosine": batch_hard("cosine"),
    # Without the pull, and without the negatives outside the margin: the gradient is that of the few
    # violators.
    "ranking_sparse": ranking(margin=0.2, pull=0.0, negatives="violating"),
    "ranking_dense": ranking(margin=0.8),
    "ranking_raw": ranking(margin=0.35, normalize=False, negatives="violating"),
    "n_pair": lambda x, y, **options: mk.n_pair_loss(x, y, scale=10.0, **options),
    "all_pairs": lambda x, y, **options: mk.all_pairs_loss(x, y, scale=5.0, margin=0.1, **options),
    "circle": lambda x, y, **options: mk.circle_loss(x, y, gamma=32.0, **options),
    "supervised_contrastive": lambda x, y, **options: mk.supervised_contrastive_loss(
        x, y, temperature=0.2, **options
    ),
}


@dataclass(frozen=True)
class Preset:
    """How rows are given and multiplied, and how far from float64 a right program may be.

    `mined`: of the gradient, relative to its norm, where the preset only picks pairs and the rest is computed
    in full precision (batch-hard). `summed`: where similarities in the preset's precision are summed (the
    other losses).
    """

    rows: torch.dtype
    precision: str
    mined: float
    summed: float

    def __str__(self) -> str:
        return f"{str(self.rows).removeprefix('torch.')}-{self.precision}"

    def tolerance(self, loss: str) -> float:
        return self.mined if loss.startswith("batch_hard") else self.summed


# A similarity S of unit rows is wrong by about u / sqrt(D) where each factor is rounded to u, and its
# exponential by the loss's scale (up to 64: circle) times that. u: 2^-9 of bfloat16, 2^-11 of tf32 (2^-10
# where it is cut off), 2^-17 of bf16x3, 2^-22 of tf32x3, 2^-24 of float32. A gradient in bfloat16 is rounded
# to 2^-9 whatever was before it.
PRESETS = (
    Preset(torch.bfloat16, "auto", 4e-3, 1e-2),
    Preset(torch.float32, "bf16", 1e-5, 1e-2),
    Preset(torch.float32, "tf32", 1e-5, 5e-3),
    Preset(torch.float32, "bf16x3", 1e-5, 1e-4),
    Preset(torch.float32, "tf32x3", 1e-5, 5e-5),
    Preset(torch.float32, "ieee", 1e-5, 5e-5),
    Preset(torch.float64, "auto", 1e-9, 1e-9),
)


def batch(rows: int, columns: int, crowd: int = 0) -> tuple[Tensor, Tensor]:
    """[rows, columns] float64 and labels, in no order; the last `crowd` of them are one identity. At least 14
    columns.

    Each identity has a twin, anywhere in the sort by label, whose rows are its nearest negatives: the
    centres' similarity is 0.8. Within such a pair the rows' deviations from the centres are orthogonal. The
    first row of an identity lies next to its centre, so it is the nearest of the twin's; the others lie
    around.
    """
    generator = torch.Generator().manual_seed(rows + columns + crowd)
    ordinary = rows - crowd
    pairs = max(ordinary // (2 * IMAGES), 1)
    identity, rank = torch.arange(ordinary) % (2 * pairs), torch.arange(ordinary) // (2 * pairs)
    most = int(rank.max()) + 1
    axes = torch.linalg.qr(
        torch.randn(pairs, columns, 2 + 2 * most, generator=generator, dtype=torch.float64)
    ).Q.mT
    pair, side = identity % pairs, identity // pairs
    centre = axes[pair, 0] * torch.where(side == 0, 1.0, 0.8)[:, None]
    centre += axes[pair, 1] * torch.where(side == 0, 0.0, 0.6)[:, None]
    spread = torch.where(rank == 0, 0.05, 0.5 + 0.05 * torch.rand(ordinary, generator=generator))
    x = centre + spread[:, None] * axes[pair, 2 + side * most + rank]
    alike = torch.randn(1, columns, generator=generator, dtype=torch.float64)
    others = normalize(torch.randn(crowd, columns, generator=generator, dtype=torch.float64))
    x = torch.cat([x, normalize(alike) + 0.5 * others])
    y = torch.cat([torch.randperm(2 * pairs, generator=generator)[identity], torch.full((crowd,), 2 * pairs)])
    x *= 1 + 0.05 * torch.rand(
        rows, 1, generator=generator
    )  # else all positives of a raw row are equally similar
    order = torch.randperm(rows, generator=generator)
    return x[order], 3 * y[order] - 7
