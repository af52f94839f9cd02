"""Cross-entropy with the log-sum-exp written out: the specification of the other backends."""

from __future__ import annotations

from torch import Tensor

from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient
from .terms import SoftmaxTerms


def softmax_loss(
    logits_BC: Tensor, targets_B: Tensor, terms: SoftmaxTerms, layout: RankLayout, *, per_anchor: bool = False
) -> Tensor:
    """Every rank computes the whole loss (collectives: logits, targets) and keeps its own rows' gradient."""
    logits_NC = gather_rows_with_gradient(logits_BC, layout)
    targets_N = gather_rows(targets_B, layout)
    highest_N1 = logits_NC.detach().max(1, keepdim=True).values
    log_sum_N = (logits_NC - highest_N1).exp().sum(1).log() + highest_N1.squeeze(1)
    target_logit_N = logits_NC.gather(1, targets_N[:, None]).squeeze(1)
    if terms.label_smoothing:
        mean_N = logits_NC.mean(1)
        target_logit_N = target_logit_N + terms.label_smoothing * (mean_N - target_logit_N)
    value_N = log_sum_N - target_logit_N
    return value_N if per_anchor else value_N.sum() / max(layout.total_rows, 1)
