"""Losses of deep ranking for person re-identification: reference and memory-lean forms, alone or over ranks.

Every loss takes a `group` (a torch.distributed process group); the gradient convention over ranks is stated
in `maskreid_kernels.ranks`. `LOSSES` is the one table of them, by the names that recipes and benchmarks use.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import Tensor

from .batch_hard import batch_hard_loss
from .logsumexp.all_pairs import all_pairs_loss
from .logsumexp.circle import circle_loss
from .logsumexp.n_pair import n_pair_loss
from .logsumexp.supervised_contrastive import supervised_contrastive_loss
from .modules import (
    AllPairsLoss,
    BatchHardLoss,
    CircleLoss,
    NPairLoss,
    RankingLoss,
    SoftmaxLoss,
    SupervisedContrastiveLoss,
)
from .options import Call
from .ranking import RankingStatistics, ranking_loss, ranking_loss_with_statistics
from .softmax import softmax_loss

LOSSES: dict[str, Callable[..., Tensor]] = {
    "ranking": ranking_loss,
    "batch_hard": batch_hard_loss,
    "n_pair": n_pair_loss,
    "all_pairs": all_pairs_loss,
    "circle": circle_loss,
    "supervised_contrastive": supervised_contrastive_loss,
    "softmax": softmax_loss,
}

__all__ = [
    "LOSSES",
    "AllPairsLoss",
    "BatchHardLoss",
    "CircleLoss",
    "NPairLoss",
    "RankingLoss",
    "RankingStatistics",
    "SoftmaxLoss",
    "SupervisedContrastiveLoss",
    "all_pairs_loss",
    "batch_hard_loss",
    "circle_loss",
    "constants",
    "n_pair_loss",
    "ranking_loss",
    "ranking_loss_with_statistics",
    "softmax_loss",
    "supervised_contrastive_loss",
]


@cache
def constants(name: str) -> Mapping[str, Any]:
    """The constants of a loss with their defaults, as its signature has them: all but what every loss
    takes."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    own = [one for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in Call._fields]
    return MappingProxyType({one.name: one.default for one in own})
