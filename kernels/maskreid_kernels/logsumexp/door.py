"""What every door of the family does: check, agree over the ranks, choose a backend, compute in full precision."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import check_backend, choose_backend
from ..inputs import compute_dtype, find_problem
from ..ranks import agree_on_layout
from . import chunked, reference
from .terms import LogSumExpTerms

REFERENCE_UP_TO_ROWS = 128


def log_sum_exp_loss(
    embeddings: Tensor, labels: Tensor, terms: LogSumExpTerms, group: dist.ProcessGroup | None, backend: str
) -> Tensor:
    """The loss of `terms`; arguments, rules and errors as in `maskreid_kernels.logsumexp`."""
    check_backend(backend)
    problem = find_problem(embeddings, labels, rows_name="embeddings", labels_name="labels")
    layout = agree_on_layout(embeddings, problem, group)
    compute = {"reference": reference.log_sum_exp_loss, "chunked": chunked.log_sum_exp_loss}[
        choose_backend(backend, layout.total_rows, REFERENCE_UP_TO_ROWS, device=embeddings.device)
    ]
    with torch.autocast(
        embeddings.device.type, enabled=False
    ):  # a large scale multiplies a low precision's error
        rows = embeddings.to(compute_dtype(embeddings.dtype))
        return compute(rows, labels.to(torch.int64), terms, layout)
