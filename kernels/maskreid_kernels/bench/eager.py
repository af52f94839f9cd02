"""The losses as their users write them today: plain autograd on N x N matrices, and the lean forms of
experts.

Each takes unit or raw rows x_ND and labels_N and returns the mean over valid anchors, like the losses of
maskreid_kernels that they are compared with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_ROWS = 1024


def _masks(y_N: Tensor, rows: slice | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """same, positive (both [n, N]) and valid [n] of the anchors in `rows`."""
    anchors = y_N if rows is None else y_N[rows]
    same = anchors[:, None] == y_N
    positive = same.clone()
    first = 0 if rows is None else rows.start
    here = torch.arange(len(anchors), device=y_N.device)
    positive[here, here + first] = False
    count = same.sum(1)
    return same, positive, (count > 1) & (count < len(y_N))


def _mean(value_N: Tensor, valid_N: Tensor) -> Tensor:
    return torch.where(valid_N, value_N, 0).sum() / valid_N.sum().clamp(min=1)


def ranking(x_ND: Tensor, y_N: Tensor, *, margin: float, pull: float = 2.0) -> Tensor:
    """Eq. 5 of MaskReID."""
    x_ND = F.normalize(x_ND, dim=1)
    S = x_ND @ x_ND.t()
    same, positive, valid = _masks(y_N)
    least = S.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    push = (S - least + margin).relu().exp().masked_fill(same, 0).sum(1)
    pull_N = ((S - 1).square() * positive).sum(1) * (pull / 2) / positive.sum(1).clamp(min=1)
    return _mean(torch.log1p(push) + pull_N, valid)


def batch_hard(x_ND: Tensor, y_N: Tensor, *, margin: float = 0.3) -> Tensor:
    """cdist and masked extremes."""
    distance = torch.cdist(x_ND, x_ND)
    same, positive, valid = _masks(y_N)
    hardest_positive = distance.masked_fill(~positive, -torch.inf).amax(1)
    hardest_negative = distance.masked_fill(same, torch.inf).amin(1)
    return _mean((hardest_positive - hardest_negative + margin).relu(), valid)


def batch_hard_mined(x_ND: Tensor, y_N: Tensor, *, margin: float = 0.3) -> Tensor:
    """Mining in blocks of rows without gradient, then the distances of what was picked: the lean form, O(N)
    memory."""
    positives, negatives, valids = [], [], []
    with torch.no_grad():
        square_N = torch.linalg.vecdot(x_ND, x_ND)
        for first in range(0, len(x_ND), BLOCK_ROWS):
            rows = slice(first, min(first + BLOCK_ROWS, len(x_ND)))
            distance = torch.addmm(square_N, x_ND[rows], x_ND.t(), alpha=-2)
            same, positive, valid = _masks(y_N, rows)
            positives.append(distance.masked_fill(~positive, -torch.inf).argmax(1))
            negatives.append(distance.masked_fill_(same, torch.inf).argmin(1))
            valids.append(valid)
    toward = torch.linalg.vector_norm(x_ND - x_ND[torch.cat(positives)], dim=1)
    away = torch.linalg.vector_norm(x_ND - x_ND[torch.cat(negatives)], dim=1)
    return _mean((toward - away + margin).relu(), torch.cat(valids))


def n_pair(x_ND: Tensor, y_N: Tensor, *, scale: float = 10.0) -> Tensor:
    x_ND = F.normalize(x_ND, dim=1)
    return _n_pair_rows(x_ND, x_ND, y_N, None, scale)


def _n_pair_rows(a_bD: Tensor, x_ND: Tensor, y_N: Tensor, rows: slice | None, scale: float) -> Tensor:
    f = scale * (a_bD @ x_ND.t())
    same, positive, valid = _masks(y_N, rows)
    A = f.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    loss = (F.softplus(A - f) * positive).sum(1) / positive.sum(1).clamp(min=1)
    total: Tensor = torch.where(valid, loss, 0).sum()
    if rows is not None:
        return total
    mean: Tensor = total / valid.sum().clamp(min=1)
    return mean


def n_pair_checkpointed(x_ND: Tensor, y_N: Tensor, *, scale: float = 10.0) -> Tensor:
    """Blocks of rows, each computed again in the backward by torch's checkpoint."""
    x_ND = F.normalize(x_ND, dim=1)
    total: Tensor = x_ND.new_zeros(())
    for first in range(0, len(x_ND), BLOCK_ROWS):
        rows = slice(first, min(first + BLOCK_ROWS, len(x_ND)))
        total = total + checkpoint(_n_pair_rows, x_ND[rows], x_ND, y_N, rows, scale, use_reentrant=False)
    _, identity_N, rows_I = torch.unique(y_N, return_inverse=True, return_counts=True)
    count_N = rows_I[identity_N]
    valid: Tensor = ((count_N > 1) & (count_N < len(y_N))).sum()
    mean: Tensor = total / valid.clamp(min=1)
    return mean


def all_pairs(x_ND: Tensor, y_N: Tensor, *, scale: float = 10.0) -> Tensor:
    x_ND = F.normalize(x_ND, dim=1)
    f = scale * (x_ND @ x_ND.t())
    same, positive, valid = _masks(y_N)
    A = f.masked_fill(same, -torch.inf).logsumexp(1)
    C = (-f).masked_fill(~positive, -torch.inf).logsumexp(1)
    return _mean(F.softplus(torch.where(valid, A + C, 0)), valid)


def circle(x_ND: Tensor, y_N: Tensor, *, margin: float = 0.25, gamma: float = 128.0) -> Tensor:
    x_ND = F.normalize(x_ND, dim=1)
    S = x_ND @ x_ND.t()
    same, positive, valid = _masks(y_N)
    away = gamma * (S.detach() + margin).relu() * (S - margin)
    toward = -gamma * (1 + margin - S.detach()).relu() * (S - 1 + margin)
    A = away.masked_fill(same, -torch.inf).logsumexp(1)
    C = toward.masked_fill(~positive, -torch.inf).logsumexp(1)
    return _mean(F.softplus(torch.where(valid, A + C, 0)), valid)


def supervised_contrastive(x_ND: Tensor, y_N: Tensor, *, temperature: float = 0.1) -> Tensor:
    x_ND = F.normalize(x_ND, dim=1)
    f = x_ND @ x_ND.t() / temperature
    _, positive, valid = _masks(y_N)
    T = f.clone().fill_diagonal_(-torch.inf).logsumexp(1)
    return _mean(T - (f * positive).sum(1) / positive.sum(1).clamp(min=1), valid)
