"""The ranking loss of MaskReID (Qi et al., arXiv 1804.03864v1, Eq. 5).

With x = embeddings (L2-normalised when `normalize`), S = x x^T, B+ / B- = the other images of the anchor's
identity / the images of other identities, for an anchor k:

    L(k) = log(1 + sum_{j in B-} exp([S_kj - min_{i in B+} S_ki + margin]_+))
           + pull / (2 |B+|) * sum_{i in B+} (S_ki - 1)^2

and the loss is the mean of L(k) over the valid anchors, those with a positive and a negative.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

from ..dispatch import Family, Loss, compute
from ..options import Call, Reduction, finite, one_of
from . import chunked, crossed, dense, reference
from .terms import Negatives, RankingStatistics, RankingTerms

__all__ = ["RankingStatistics", "ranking_loss", "ranking_loss_with_statistics"]


def _terms(
    margin: float, pull: float, negatives: Negatives, normalize: bool, *, statistics: bool
) -> RankingTerms:
    one_of("negatives", negatives, ("all", "violating"))
    return RankingTerms(
        finite("margin", margin), finite("pull", pull), negatives, bool(normalize), statistics=statistics
    )


def _triton(*arguments: Any, **options: Any) -> tuple[Tensor, RankingStatistics]:
    from . import triton  # Triton is imported, and its programs decorated, only where it is used

    return triton.ranking_loss(*arguments, **options)


FAMILY = Family(
    {
        "reference": reference.ranking_loss,
        "dense": dense.ranking_loss,
        "chunked": chunked.ranking_loss,
        "triton": _triton,
    },
    plain_up_to=512,
    crossed={"reference": crossed.specification, "chunked": crossed.chunked},
)
RANKING = Loss("ranking", partial(_terms, statistics=False), FAMILY)
RANKING_WITH_STATISTICS = Loss(
    "ranking_with_statistics", partial(_terms, statistics=True), FAMILY, RankingStatistics.NUMBERS
)


def ranking_loss_with_statistics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.15,
    pull: float = 2.0,
    negatives: Literal["all", "violating"] = "all",
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, RankingStatistics]:
    """`ranking_loss` and the statistics of the same forward (no second pass over the similarities)."""
    constants = {"margin": margin, "pull": pull, "negatives": negatives, "normalize": normalize}
    call = Call(group, backend, precision, reduction, ignore_index, reference)
    loss, found = compute(RANKING_WITH_STATISTICS, embeddings, labels, constants, call)
    if isinstance(found, Tensor):  # packed by the compiler's operator
        found = RankingStatistics.unpacked(found, loss.dtype)
    return loss, found


def ranking_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.15,
    pull: float = 2.0,
    negatives: Literal["all", "violating"] = "all",
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Ranking loss, Eq. 5 of the paper (see the module), as a 0-d tensor.

    embeddings: [B, D] float64, float32, bfloat16 or float16; labels: [B] integers of any value, in any order.
    Computed and returned in float32 (float64 for float64 input); the gradient has the input's dtype.
    margin, pull: alpha and lambda of Eq. 5. negatives: "all" is Eq. 5 to the letter, where a negative outside
    the margin adds exp(0) = 1 and the value has the floor log(1 + |B-|); "violating" sums over the negatives
    inside the margin only and has no floor. The gradients of the two differ by the denominator alone.
    normalize: L2-normalise here, the gradient goes through; a zero row gets zero gradient.
    When several positives share the smallest computed similarity, the one of lowest global row takes the
    gradient. A batch without a valid anchor gives 0, with zero gradient.
    group: the batch is that of all its ranks; convention in `maskreid_kernels.ranks`. None: this process
    alone. backend: "reference" (plain autograd, O(N^2) memory), "dense" (O(N^2) memory, its own backward: for
    small batches), "chunked" (O(N D) memory; differentiating its
    gradient raises RuntimeError), "triton" (the same on a GPU, fused) or "auto". precision: of "triton"
    alone, a preset of `maskreid_kernels.precision` for the negatives' similarities; "auto" follows the rows'
    dtype and torch.set_float32_matmul_precision. reduction, ignore_index: see `maskreid_kernels.options`.
    reference: a pair (rows [R, D], labels [R]) that are the only candidates, the batch's rows being anchors
    alone; see there. By "chunked" and "reference". Raises ValueError on bad input or an unavailable backend.
    """
    constants = {"margin": margin, "pull": pull, "negatives": negatives, "normalize": normalize}
    call = Call(group, backend, precision, reduction, ignore_index, reference)
    return compute(RANKING, embeddings, labels, constants, call)[0]
