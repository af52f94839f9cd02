"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362, Eq. 2, "out")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..options import Call, Reduction, positive
from .exponent import Exponent
from .family import log_sum_exp, log_sum_exp_loss
from .terms import LogSumExpTerms


def supervised_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """SupCon, as a 0-d tensor; where every identity has two images it is InfoNCE.

        L(k) = -1/|B+| sum_{i in B+} log( exp(S_ki / temperature) / sum_{a != k} exp(S_ka / temperature) )

    For one anchor, in torch:

        f = S_k / temperature
        L = torch.logsumexp(f[everybody_else], 0) - f[positives].mean()

    Unlike `n_pair_loss`, an anchor's other positives stand in the denominator. An anchor without a negative
    is not counted. Shapes, dtypes, valid anchors, `normalize`, `group`, `backend`, `precision`, `reduction`,
    `ignore_index`, `reference`, errors: see `maskreid_kernels.logsumexp`.
    """
    constants = {"temperature": temperature, "normalize": normalize}
    call = Call(group, backend, precision, reduction, ignore_index, reference)
    return log_sum_exp_loss(SUPERVISED_CONTRASTIVE, embeddings, labels, constants, call)


@dataclass(frozen=True)
class SupervisedContrastiveTerms(LogSumExpTerms):
    """`level` is the log-sum-exp over everybody else, T: dL/dA = exp(A - T), so `log_weight` is -T."""

    def loss(self, S_VN: Tensor, positive_VN: Tensor, negative_VN: Tensor) -> Tensor:
        f_VN = self.exponent(S_VN)
        T_V = f_VN.masked_fill(~(positive_VN | negative_VN), -torch.inf).logsumexp(1)
        return T_V - (f_VN * positive_VN).sum(1) / positive_VN.sum(1)

    def anchor(self, A_b: Tensor, S_bP: Tensor, positive_bP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f_bP = self.exponent.scale * S_bP
        other_bP = ~positive_bP
        mean_b = f_bP.masked_fill(other_bP, 0).sum(1) / positive_bP.sum(1)
        f_bP.masked_fill_(other_bP, -torch.inf)
        # logsumexp and logaddexp would take twice as long on small batches
        top_b = torch.maximum(f_bP.amax(1), A_b)
        sum_b = f_bP.sub_(top_b[:, None]).exp_().sum(1).add_((A_b - top_b).exp_())
        T_b = sum_b.log_().add_(top_b)
        return T_b - mean_b, -T_b, T_b

    def pull(self, S_bP: Tensor, level_bP: Tensor, positives_b1: Tensor) -> Tensor:
        scale = self.exponent.scale
        return torch.exp(scale * S_bP - level_bP).sub_(positives_b1.to(S_bP.dtype).reciprocal()).mul_(scale)


def _terms(temperature: float, normalize: bool) -> SupervisedContrastiveTerms:
    exponent = Exponent(1 / positive("temperature", temperature))
    return SupervisedContrastiveTerms(exponent, bool(normalize))


SUPERVISED_CONTRASTIVE = log_sum_exp("supervised_contrastive", _terms)
