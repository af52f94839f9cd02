"""The backends that all losses of the family share, and the scale that may be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..dispatch import Family, Loss, compute
from ..options import Call
from . import chunked, dense, reference
from .terms import LogSumExpTerms


def _triton(*arguments: Any, **options: Any) -> Tensor:
    from . import triton  # Triton is imported, and its programs decorated, only where it is used

    return triton.log_sum_exp_loss(*arguments, **options)


FAMILY = Family(
    {
        "reference": reference.log_sum_exp_loss,
        "dense": dense.log_sum_exp_loss,
        "chunked": chunked.log_sum_exp_loss,
        "triton": _triton,
    },
    plain_up_to=512,
)


def log_sum_exp(name: str, terms: Callable[..., LogSumExpTerms]) -> Loss:
    """A loss of the family. `terms`: of its constants, by name, `normalize` among them; raises ValueError."""
    return Loss(name, terms, FAMILY)


def log_sum_exp_loss(
    loss: Loss, embeddings: Tensor, labels: Tensor, constants: Mapping[str, Any], call: Call
) -> Tensor:
    """The loss; arguments, rules and errors as in `maskreid_kernels.logsumexp`."""
    value, _ = compute(loss, embeddings, labels, constants, call)
    return value
