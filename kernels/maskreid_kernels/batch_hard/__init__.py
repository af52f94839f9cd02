"""Triplet loss with online hard mining (Hermans, Beyer, Leibe, arXiv 1703.07737, Eq. 5, "batch hard").

For an anchor k with hardest positive p (largest distance d) and hardest negative n (smallest):

    L(k) = [margin + d(k, p) - d(k, n)]_+          or, soft margin,    log(1 + exp(d(k, p) - d(k, n)))

and the loss is the mean of L(k) over the valid anchors, those with a positive and a negative.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

from ..dispatch import Family, Loss, compute
from ..options import Call, Reduction, finite, one_of
from . import chunked, crossed, dense, reference
from .terms import DISTANCES, BatchHardTerms

__all__ = ["batch_hard_loss"]


def _terms(margin: float | str, distance: str, normalize: bool) -> BatchHardTerms:
    if isinstance(margin, str) and margin != "soft":
        raise ValueError(f'margin: expected a finite number or "soft", got {margin!r}')
    one_of("distance", distance, DISTANCES)
    number = None if isinstance(margin, str) else finite("margin", margin)
    return BatchHardTerms(number, distance, normalize or distance == "cosine")


def _triton(*arguments: Any, **options: Any) -> Tensor:
    from . import triton  # Triton is imported, and its programs decorated, only where it is used

    return triton.batch_hard_loss(*arguments, **options)


BATCH_HARD = Loss(
    "batch_hard",
    _terms,
    Family(
        {
            "reference": reference.batch_hard_loss,
            "dense": dense.batch_hard_loss,
            "chunked": chunked.batch_hard_loss,
            "triton": _triton,
        },
        plain_up_to=512,
        crossed={"reference": crossed.specification, "chunked": crossed.chunked},
        capturable=("auto", "dense", "triton"),
    ),
)


def batch_hard_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float | Literal["soft"] = 0.3,
    distance: Literal["euclidean", "squared_euclidean", "cosine"] = "euclidean",
    normalize: bool = False,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Batch-hard triplet loss (see the module), as a 0-d tensor.

    embeddings: [B, D] float64, float32, bfloat16 or float16; labels: [B] integers of any value, in any order.
    Computed and returned in float32 (float64 for float64 input); the gradient has the input's dtype.
    distance: "cosine" is 1 - cos and always normalises. The gradient of "euclidean" at distance 0 is 0.
    normalize: L2-normalise here, the gradient goes through; a zero row gets zero gradient.
    Pairs are mined on |a|^2 + |b|^2 - 2 a.b, and the distances of the picked ones computed again from a - b.
    Of equal mined distances the lowest global row is picked ("triton": the lowest label's; in bfloat16 any of
    those within rounding). An anchor is not its own positive.
    A batch without a valid anchor gives 0, with zero gradient.
    group: the batch is that of all its ranks; convention in `maskreid_kernels.ranks`. None: this process
    alone. backend: "reference" (plain autograd, O(N^2) memory), "dense" (O(N^2) memory, its own backward: for
    small batches), "chunked" (O(N D) memory, the backward has no
    matrix product; differentiating its gradient raises RuntimeError), "triton" (the same on a GPU, fused) or
    "auto". precision: of "triton" alone, a preset of `maskreid_kernels.precision` for the mining; "auto"
    follows the rows' dtype and torch.set_float32_matmul_precision. reduction, ignore_index: see
    `maskreid_kernels.options`. reference: a pair (rows [R, D], labels [R]) that are the only candidates, the
    batch's rows being anchors alone; see there. By "chunked" and "reference". Raises ValueError on bad input
    or an unavailable backend.
    """
    constants = {"margin": margin, "distance": distance, "normalize": normalize}
    return compute(
        BATCH_HARD,
        embeddings,
        labels,
        constants,
        Call(group, backend, precision, reduction, ignore_index, reference),
    )[0]
