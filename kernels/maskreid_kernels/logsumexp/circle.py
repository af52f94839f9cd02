"""Circle loss (Sun et al., CVPR 2020, arXiv 2002.10857), with pairs named by identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..compiled import compiled_loss
from .all_pairs import PairSumTerms
from .door import log_sum_exp_loss
from .exponent import Exponent, check_finite, check_positive


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
) -> Tensor:
    """Circle loss, as a 0-d tensor; the defaults are the paper's for person re-identification.

        L(k) = log(1 + sum_{j in B-} exp(gamma a_n (S_kj - margin)) sum_{i in B+} exp(-gamma a_p (S_ki - 1 + margin)))
        a_n = [S_kj + margin]_+     a_p = [1 + margin - S_ki]_+     constants: no gradient goes through them

    For one anchor, in torch:

        n, p = S_k[negatives], S_k[positives]
        A = torch.logsumexp(gamma * F.relu(n.detach() + margin) * (n - margin), 0)
        C = torch.logsumexp(-gamma * F.relu(1 + margin - p.detach()) * (p - 1 + margin), 0)
        L = F.softplus(A + C)

    Shapes, dtypes, valid anchors, `normalize`, `group`, `backend`, `precision`, errors: see
    `maskreid_kernels.logsumexp`.
    """
    if torch.compiler.is_compiling() and backend != "reference":
        options = {
            "margin": margin,
            "gamma": gamma,
            "normalize": normalize,
            "backend": backend,
            "precision": precision,
        }
        return compiled_loss("circle_loss", embeddings, labels, group, options)[0]
    exponent = Exponent(check_positive("gamma", gamma), check_finite("margin", margin))
    # -a_p (S - 1 + margin) is what a_n (S - margin) becomes with 1 - S in the place of S.
    return log_sum_exp_loss(
        embeddings, labels, PairSumTerms(exponent, normalize, 1.0), group, backend, precision
    )
