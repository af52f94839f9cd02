"""Cross-entropy with the log-sum-exp written out: the specification of the other backends."""

from __future__ import annotations

from torch import Tensor

from ..inputs import compute_dtype
from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient


def softmax_loss(logits_BC: Tensor, targets_B: Tensor, layout: RankLayout) -> Tensor:
    """Every rank computes the whole loss (collectives: logits, targets) and keeps its own rows' gradient."""
    logits_NC = gather_rows_with_gradient(logits_BC.to(compute_dtype(logits_BC.dtype)), layout)
    targets_N = gather_rows(targets_B, layout)
    highest_N1 = logits_NC.detach().max(1, keepdim=True).values
    log_sum_N = (logits_NC - highest_N1).exp().sum(1).log() + highest_N1.squeeze(1)
    target_logit_N = logits_NC.gather(1, targets_N[:, None]).squeeze(1)
    return (log_sum_N - target_logit_N).sum() / max(layout.total_rows, 1)
