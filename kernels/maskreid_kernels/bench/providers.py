"""Who is measured on which loss, and how much memory each is known to want."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import LOSSES
from . import eager
from .cases import Case, CaseData, constants

Loss = Callable[[Tensor, Tensor], Tensor]
OURS = {name: loss for name, loss in LOSSES.items() if name != "softmax"}  # those over pairs of rows
COMPILED = "eager compiled"
FLOOR = "gemm"  # the product x x^T alone: no loss over all pairs can be faster


@dataclass(frozen=True)
class Provider:
    """`matrices`: N x N matrices of float32 that it holds at its peak; 0 where memory is O(N D). `exact`: its
    gradient is that of our loss, so errors are comparable."""

    name: str
    loss: Loss
    matrices: float = 0.0
    exact: bool = True


def providers(case: Case, data: CaseData, *, compiled: bool, max_autotune: bool = False) -> list[Provider]:
    """Everything that can compute `case`'s loss here, ours first. `max_autotune`: minutes of search for a
    compiled form."""
    keywords = constants(case, data.margin)
    loss, plain = OURS[case.kernel], getattr(eager, case.kernel)

    def with_backend(backend: str) -> Loss:
        return lambda x, y: loss(x, y, backend=backend, **keywords)

    names = ["auto", "chunked"] + (["triton"] if data.x_ND.is_cuda else [])
    found = [Provider(f"maskreid {name}", with_backend(name)) for name in names]
    found.append(Provider("eager", lambda x, y: plain(x, y, **keywords), matrices=3.0))
    if compiled:
        fused = torch.compile(plain, mode="max-autotune-no-cudagraphs" if max_autotune else "default")
        found.append(Provider(COMPILED, lambda x, y: fused(x, y, **keywords), matrices=3.0))
    if case.kernel == "batch_hard":
        found.append(Provider("chunked mining", lambda x, y: eager.batch_hard_mined(x, y, **keywords)))
    if case.kernel == "n_pair":
        found.append(Provider("chunked checkpoint", lambda x, y: eager.n_pair_checkpointed(x, y, **keywords)))
    found += _metric_learning(case.kernel)
    halves_on_gpu = data.x_ND.is_cuda and data.x_ND.dtype == torch.bfloat16
    if case.kernel in ("n_pair", "supervised_contrastive") and halves_on_gpu:
        found += _info_nce(1 / 0.1, partners(data.y_N))
    found.append(Provider(FLOOR, gemm, exact=False))
    return found


def gemm(x_ND: Tensor, y_N: Tensor) -> Tensor:
    """x x^T in blocks of rows; nothing is kept, so that it fits at any N."""
    block = x_ND.new_empty((min(len(x_ND), 4096), len(x_ND)))
    with torch.no_grad():
        for first in range(0, len(x_ND), len(block)):
            rows = x_ND[first : first + len(block)]
            torch.mm(rows, x_ND.t(), out=block[: len(rows)])
    return x_ND.sum() * 0


def _metric_learning(kernel: str) -> list[Provider]:
    """pytorch-metric-learning's forms, with its reducer set to the mean over all anchors that ours takes."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return []
    from pytorch_metric_learning import distances, losses, miners, reducers

    if kernel == "batch_hard":
        euclidean = distances.LpDistance(normalize_embeddings=False)
        miner = miners.BatchHardMiner(distance=euclidean)
        triplet = losses.TripletMarginLoss(margin=0.3, distance=euclidean, reducer=reducers.MeanReducer())
        return [Provider("metric-learning", lambda x, y: triplet(x, y, miner(x, y)), 7.3)]
    if kernel == "circle":
        circle = losses.CircleLoss(m=0.25, gamma=128, reducer=reducers.MeanReducer())
        return [Provider("metric-learning", lambda x, y: circle(x, y), 15.7, exact=False)]
    if kernel == "supervised_contrastive":
        contrastive = losses.SupConLoss(temperature=0.1, reducer=reducers.MeanReducer())
        return [Provider("metric-learning", lambda x, y: contrastive(x, y), 8.0)]
    return []


def partners(y_N: Tensor) -> Tensor:
    """For every row another of its identity, where it has one; a permutation. int64."""
    order_N = torch.argsort(y_N, stable=True)
    sorted_N = y_N[order_N]
    first_N = torch.searchsorted(sorted_N, sorted_N)
    place_N = torch.arange(len(y_N), device=y_N.device)
    follows_N = torch.cat((sorted_N[1:] == sorted_N[:-1], sorted_N.new_zeros(1, dtype=torch.bool)))
    partner_N = torch.empty_like(order_N)
    partner_N[order_N] = order_N[torch.where(follows_N, place_N + 1, first_N)]
    return partner_N


def _info_nce(scale: float, partner_N: Tensor) -> list[Provider]:
    """Programs for InfoNCE, where they are installed: `inf-cl`, `cut-cross-entropy`. Not yet run on a GPU.

    The same products, but another loss: a row has one positive, and its own similarity counts as a negative.
    """
    found = []
    if importlib.util.find_spec("inf_cl"):
        from inf_cl import cal_flash_loss

        found.append(
            Provider("inf-cl", lambda x, y: cal_flash_loss(x, x, partner_N, scale).mean(), exact=False)
        )
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found.append(
            Provider(
                "cut-cross-entropy", lambda x, y: linear_cross_entropy(scale * x, x, partner_N), exact=False
            )
        )
    return found
