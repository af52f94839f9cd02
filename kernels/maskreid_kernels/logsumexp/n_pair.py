"""The N-pair loss (Sohn, NeurIPS 2016; Eq. 3 of MaskReID, arXiv 1804.03864v1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..options import Call, Reduction, positive
from .exponent import Exponent
from .family import log_sum_exp, log_sum_exp_loss
from .terms import LogSumExpTerms


def n_pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    scale: float | Tensor = 1.0,
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """N-pair loss, as a 0-d tensor: every positive in turn against all negatives, and the mean over both.

        L(k) = 1/|B+| sum_{i in B+} log(1 + sum_{j in B-} exp(scale (S_kj - S_ki)))

    Eq. 3 takes one positive per anchor; so does this where an identity has two images. With
    scale = 1 / temperature it is the NT-Xent form of InfoNCE. For one anchor, in torch:

        A = torch.logsumexp(scale * S_k[negatives], 0)
        L = F.softplus(A - scale * S_k[positives]).mean()

    Shapes, dtypes, valid anchors, `normalize`, `group`, `backend`, `precision`, `reduction`, `ignore_index`,
    `reference`, errors: see `maskreid_kernels.logsumexp`.
    """
    constants = {"scale": scale, "normalize": normalize}
    call = Call(group, backend, precision, reduction, ignore_index, reference)
    return log_sum_exp_loss(N_PAIR, embeddings, labels, constants, call)


@dataclass(frozen=True)
class NPairTerms(LogSumExpTerms):
    """`level` is A itself."""

    @property
    def exact_log_weight(self) -> bool:
        """A share of a half or a third is lost beside the A of rows as long as a thousand."""
        return not self.normalize

    def loss(self, S_VN: Tensor, positive_VN: Tensor, negative_VN: Tensor) -> Tensor:
        f_VN = self.exponent(S_VN)
        A_V1 = f_VN.masked_fill(~negative_VN, -torch.inf).logsumexp(1, keepdim=True)
        loss_VN = torch.logaddexp(A_V1 - f_VN, torch.zeros_like(f_VN))
        return (loss_VN * positive_VN).sum(1) / positive_VN.sum(1)

    def anchor(self, A_b: Tensor, S_bP: Tensor, positive_bP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        other_bP = ~positive_bP
        positives_b = positive_bP.sum(1, dtype=S_bP.dtype)
        gap_bP = A_b[:, None] - self.exponent.scale * S_bP
        # beyond 50, softplus is its argument even in float64
        value_b = F.softplus(gap_bP, threshold=50).masked_fill_(other_bP, 0).sum(1) / positives_b
        # The share rounds to 0 only where A is so far below every positive that no negative pulls.
        share_b = torch.sigmoid(gap_bP).masked_fill_(other_bP, 0).sum(1) / positives_b
        log_share_b = share_b.log_()
        if self.exact_log_weight:
            return value_b, log_share_b.double() - A_b.double(), A_b
        return value_b, log_share_b - A_b, A_b

    def pull(self, S_bP: Tensor, level_bP: Tensor, positives_b1: Tensor) -> Tensor:
        return torch.sigmoid(level_bP - self.exponent.scale * S_bP).mul_(-self.exponent.scale) / positives_b1


def _terms(scale: float, normalize: bool) -> NPairTerms:
    return NPairTerms(Exponent(positive("scale", scale)), bool(normalize))


N_PAIR = log_sum_exp("n_pair", _terms)
