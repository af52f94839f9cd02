"""The loss over all pairs of a positive and a negative (Eq. 4 of MaskReID, arXiv 1804.03864v1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..options import Call, Reduction, finite, positive
from .exponent import Exponent
from .family import log_sum_exp, log_sum_exp_loss
from .terms import LogSumExpTerms


def all_pairs_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    scale: float | Tensor = 1.0,
    margin: float = 0.0,
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """All-pairs loss, as a 0-d tensor; Eq. 4 of the paper with scale = 1 and margin = 0.

        L(k) = log(1 + sum_{i in B+} sum_{j in B-} exp(scale (S_kj - S_ki + margin)))

    The double sum is the product of one sum over the negatives and one over the positives. For one anchor, in
    torch:

        A = torch.logsumexp(scale * S_k[negatives], 0)
        L = F.softplus(A + torch.logsumexp(scale * (margin - S_k[positives]), 0))

    Shapes, dtypes, valid anchors, `normalize`, `group`, `backend`, `precision`, `reduction`, `ignore_index`,
    `reference`, errors: see `maskreid_kernels.logsumexp`.
    """
    constants = {"scale": scale, "margin": margin, "normalize": normalize}
    call = Call(group, backend, precision, reduction, ignore_index, reference)
    return log_sum_exp_loss(ALL_PAIRS, embeddings, labels, constants, call)


@dataclass(frozen=True)
class PairSumTerms(LogSumExpTerms):
    """L = log(1 + exp(A + C)) with C = log sum_{i in B+} exp(f(mirror - S_ki)).

    `level` is log dL/dC - C: of the positives what `log_weight` is of the negatives.
    """

    mirror: float

    def loss(self, S_VN: Tensor, positive_VN: Tensor, negative_VN: Tensor) -> Tensor:
        A_V = self.exponent(S_VN).masked_fill(~negative_VN, -torch.inf).logsumexp(1)
        C_V = self.exponent(self.mirror - S_VN).masked_fill(~positive_VN, -torch.inf).logsumexp(1)
        return torch.logaddexp(A_V + C_V, torch.zeros_like(A_V))

    def anchor(self, A_b: Tensor, S_bP: Tensor, positive_bP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f_bP = self.exponent.value_(self.mirror - S_bP)
        C_b = f_bP.masked_fill_(~positive_bP, -torch.inf).logsumexp(1)
        log_share_b = F.logsigmoid(A_b + C_b)  # dL/dA = dL/dC
        return -F.logsigmoid(-A_b - C_b), log_share_b - A_b, log_share_b - C_b

    def pull(self, S_bP: Tensor, level_bP: Tensor, positives_b1: Tensor) -> Tensor:
        apart_bP = self.mirror - S_bP
        slope_bP = self.exponent.slope(apart_bP)
        return torch.add(self.exponent.value_(apart_bP), level_bP).exp_().mul_(slope_bP).neg_()


def _terms(scale: float, margin: float, normalize: bool) -> PairSumTerms:
    return PairSumTerms(Exponent(positive("scale", scale)), bool(normalize), finite("margin", margin))


ALL_PAIRS = log_sum_exp("all_pairs", _terms)
