"""Circle loss (Sun et al., CVPR 2020, arXiv 2002.10857), with pairs named by identity."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ..options import Call, Reduction, finite, positive
from .all_pairs import PairSumTerms
from .exponent import Exponent
from .family import log_sum_exp, log_sum_exp_loss


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.25,
    gamma: float = 128.0,
    normalize: bool = True,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Circle loss, as a 0-d tensor; the defaults are the paper's for person re-identification.

        L(k) = log(1 + sum_{j in B-} exp(gamma a_n (S_kj - margin))
                     * sum_{i in B+} exp(-gamma a_p (S_ki - 1 + margin)))
        a_n = [S_kj + margin]_+     a_p = [1 + margin - S_ki]_+     constants: no gradient goes through them

    For one anchor, in torch:

        n, p = S_k[negatives], S_k[positives]
        A = torch.logsumexp(gamma * F.relu(n.detach() + margin) * (n - margin), 0)
        C = torch.logsumexp(-gamma * F.relu(1 + margin - p.detach()) * (p - 1 + margin), 0)
        L = F.softplus(A + C)

    Shapes, dtypes, valid anchors, `normalize`, `group`, `backend`, `precision`, `reduction`, `ignore_index`,
    `reference`, errors: see `maskreid_kernels.logsumexp`.
    """
    constants = {"margin": margin, "gamma": gamma, "normalize": normalize}
    call = Call(group, backend, precision, reduction, ignore_index, reference)
    return log_sum_exp_loss(CIRCLE, embeddings, labels, constants, call)


def _terms(margin: float, gamma: float, normalize: bool) -> PairSumTerms:
    exponent = Exponent(positive("gamma", gamma), finite("margin", margin))
    # -a_p (S - 1 + margin) is what a_n (S - margin) becomes with 1 - S in the place of S.
    return PairSumTerms(exponent, bool(normalize), 1.0)


CIRCLE = log_sum_exp("circle", _terms)
