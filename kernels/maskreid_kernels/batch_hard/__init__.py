"""Triplet loss with online hard mining (Hermans, Beyer, Leibe, arXiv 1703.07737, Eq. 5, "batch hard").

For an anchor k with hardest positive p (largest distance d) and hardest negative n (smallest):

    L(k) = [margin + d(k, p) - d(k, n)]_+          or, soft margin,    log(1 + exp(d(k, p) - d(k, n)))

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
from .terms import DISTANCES, BatchHardTerms

__all__ = ["batch_hard_loss"]

DENSE_UP_TO_ROWS = 256


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
) -> Tensor:
    """Batch-hard triplet loss (see the module), as a 0-d tensor.

    embeddings: [B, D] float64, float32, bfloat16 or float16; labels: [B] integers of any value, in any order.
    Computed and returned in float32 (float64 for float64 input); the gradient has the input's dtype.
    distance: "cosine" is 1 - cos and always normalises. The gradient of "euclidean" at distance 0 is 0.
    normalize: L2-normalise here, the gradient goes through; a zero row gets zero gradient.
    Pairs are mined on |a|^2 + |b|^2 - 2 a.b, and the distances of the picked ones computed again from a - b.
    Of equal mined distances the lowest global row is picked ("triton": the lowest label's; in bfloat16 any of those
    within rounding). An anchor is not its own positive.
    A batch without a valid anchor gives 0, with zero gradient.
    group: the batch is that of all its ranks; convention in `maskreid_kernels.ranks`. None: this process
    alone. backend: "reference" (plain autograd, O(N^2) memory), "dense" (O(N^2) memory, its own backward: for small
    batches), "chunked" (O(N D) memory, the backward has no
    matrix product; differentiating its gradient raises RuntimeError), "triton" (the same on a GPU, fused) or
    "auto". precision: of "triton" alone, a preset of `maskreid_kernels.precision` for the mining; "auto" follows the
    rows' dtype and torch.set_float32_matmul_precision. Raises ValueError on bad
    input or an unavailable backend.
    """
    if torch.compiler.is_compiling() and backend != "reference":
        options = {
            "margin": margin,
            "distance": distance,
            "normalize": normalize,
            "backend": backend,
            "precision": precision,
        }
        return compiled_loss("batch_hard_loss", embeddings, labels, group, options)[0]
    check_backend(backend, ALL_BACKENDS)
    check_precision(precision, backend)
    if margin != "soft" and (isinstance(margin, str) or not math.isfinite(margin)):
        raise ValueError(f'margin: expected a finite number or "soft", got {margin!r}')
    if distance not in DISTANCES:
        raise ValueError(f"distance: expected one of {', '.join(DISTANCES)}, got {distance!r}")
    problem = find_problem(embeddings, labels, rows_name="embeddings", labels_name="labels")
    layout = agree_on_layout(embeddings, problem, group)
    terms = BatchHardTerms(
        None if margin == "soft" else float(margin), distance, normalize or distance == "cosine"
    )
    chosen = choose_backend(
        backend, layout.total_rows, DENSE_UP_TO_ROWS, device=embeddings.device, available=ALL_BACKENDS
    )
    labels = labels.to(torch.int64)
    with on_their_device(embeddings):  # low precision would move what is mined
        if chosen == "triton":
            from . import triton  # Triton is imported, and its programs decorated, only where it is used

            preset = choose_precision(precision, embeddings.dtype)
            return triton.batch_hard_loss(embeddings, labels, terms, layout, preset)
        rows = embeddings.to(compute_dtype(embeddings.dtype))
        compute = {
            "reference": reference.batch_hard_loss,
            "dense": dense.batch_hard_loss,
            "chunked": chunked.batch_hard_loss,
        }[chosen]
        return compute(rows, labels, terms, layout)
