"""What every door of the family does: check, agree over the ranks, choose a backend, compute in full precision."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import ALL_BACKENDS, check_backend, choose_backend
from ..inputs import compute_dtype, find_problem, on_their_device
from ..precision import check_precision, choose_precision
from ..ranks import agree_on_layout
from . import chunked, dense, reference
from .terms import LogSumExpTerms

DENSE_UP_TO_ROWS = 512


def log_sum_exp_loss(
    embeddings: Tensor,
    labels: Tensor,
    terms: LogSumExpTerms,
    group: dist.ProcessGroup | None,
    backend: str,
    precision: str,
) -> Tensor:
    """The loss of `terms`; arguments, rules and errors as in `maskreid_kernels.logsumexp`."""
    check_backend(backend, ALL_BACKENDS)
    check_precision(precision, backend)
    problem = find_problem(embeddings, labels, rows_name="embeddings", labels_name="labels")
    layout = agree_on_layout(embeddings, problem, group)
    chosen = choose_backend(
        backend, layout.total_rows, DENSE_UP_TO_ROWS, device=embeddings.device, available=ALL_BACKENDS
    )
    labels = labels.to(torch.int64)
    with on_their_device(embeddings):  # a large scale multiplies a row's rounding
        if chosen == "triton":
            from . import triton  # Triton is imported, and its programs decorated, only where it is used

            preset = choose_precision(precision, embeddings.dtype)
            return triton.log_sum_exp_loss(embeddings, labels, terms, layout, preset)
        rows = embeddings.to(compute_dtype(embeddings.dtype))
        compute = {
            "reference": reference.log_sum_exp_loss,
            "dense": dense.log_sum_exp_loss,
            "chunked": chunked.log_sum_exp_loss,
        }[chosen]
        return compute(rows, labels, terms, layout)
