"""The ranking loss of MaskReID (Qi et al., arXiv 1804.03864v1, Eq. 5).

With x = embeddings (L2-normalised when `normalize`), S = x x^T, B+ / B- = the other images of the anchor's
identity / the images of other identities, for an anchor k:

    L(k) = log(1 + sum_{j in B-} exp([S_kj - min_{i in B+} S_ki + margin]_+))
           + pull / (2 |B+|) * sum_{i in B+} (S_ki - 1)^2

and the loss is the mean of L(k) over the valid anchors, those with a positive and a negative.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import ALL_BACKENDS, check_backend, choose_backend
from ..compiled import compiled_loss
from ..inputs import compute_dtype, find_problem, on_their_device
from ..precision import check_precision, choose_precision
from ..ranks import agree_on_layout
from . import chunked, dense, reference
from .terms import RankingStatistics, RankingTerms

__all__ = ["RankingStatistics", "ranking_loss", "ranking_loss_with_statistics"]

DENSE_UP_TO_ROWS = 256


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
) -> tuple[Tensor, RankingStatistics]:
    """`ranking_loss` and the statistics of the same forward (no second pass over the similarities)."""
    loss, statistics = _compute(
        embeddings, labels, margin, pull, negatives, normalize, group, backend, precision, True
    )
    assert statistics is not None
    return loss, statistics


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
    gradient raises RuntimeError), "triton" (the same on a GPU, fused) or "auto". precision: of "triton" alone, a
    preset of `maskreid_kernels.precision` for the negatives' similarities; "auto" follows the rows' dtype and
    torch.set_float32_matmul_precision. Raises ValueError on bad input or an unavailable backend.
    """
    loss, _ = _compute(
        embeddings, labels, margin, pull, negatives, normalize, group, backend, precision, False
    )
    return loss


def _compute(
    embeddings: Tensor,
    labels: Tensor,
    margin: float,
    pull: float,
    negatives: Literal["all", "violating"],
    normalize: bool,
    group: dist.ProcessGroup | None,
    backend: str,
    precision: str,
    statistics: bool,
) -> tuple[Tensor, RankingStatistics | None]:
    if torch.compiler.is_compiling() and backend != "reference":
        options = {
            "margin": margin,
            "pull": pull,
            "negatives": negatives,
            "normalize": normalize,
            "backend": backend,
        }
        options["precision"] = precision
        name = "ranking_loss_with_statistics" if statistics else "ranking_loss"
        loss, values = compiled_loss(name, embeddings, labels, group, options)
        if not statistics:
            return loss, None
        return loss, RankingStatistics(values[0].to(loss.dtype), values[1].to(loss.dtype), values[2].long())
    check_backend(backend, ALL_BACKENDS)
    check_precision(precision, backend)
    if negatives not in ("all", "violating"):
        raise ValueError(f'negatives: expected "all" or "violating", got {negatives!r}')
    if not (math.isfinite(margin) and math.isfinite(pull)):
        raise ValueError(f"margin and pull: expected finite numbers, got {margin} and {pull}")
    terms = RankingTerms(float(margin), float(pull), negatives, normalize)
    problem = find_problem(embeddings, labels, rows_name="embeddings", labels_name="labels")
    layout = agree_on_layout(embeddings, problem, group)
    chosen = choose_backend(
        backend, layout.total_rows, DENSE_UP_TO_ROWS, device=embeddings.device, available=ALL_BACKENDS
    )
    labels = labels.to(torch.int64)
    with on_their_device(embeddings):  # low precision would move the mined positive
        if chosen == "triton":
            from . import triton  # Triton is imported, and its programs decorated, only where it is used

            preset = choose_precision(precision, embeddings.dtype)
            return triton.ranking_loss(embeddings, labels, terms, layout, preset)
        rows = embeddings.to(compute_dtype(embeddings.dtype))
        if chosen == "dense":
            return dense.ranking_loss(rows, labels, terms, layout, statistics)
        compute = {"reference": reference.ranking_loss, "chunked": chunked.ranking_loss}[chosen]
        return compute(rows, labels, terms, layout)
