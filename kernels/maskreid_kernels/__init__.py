"""Losses of deep ranking for person re-identification: reference and memory-lean forms, alone or over ranks.

Every loss takes a `group` (a torch.distributed process group); the gradient convention over ranks is stated
in `maskreid_kernels.ranks`.
"""

from .batch_hard import batch_hard_loss
from .logsumexp import all_pairs_loss, circle_loss, n_pair_loss, supervised_contrastive_loss
from .ranking import RankingStatistics, ranking_loss, ranking_loss_with_statistics
from .softmax import softmax_loss

__all__ = [
    "RankingStatistics",
    "all_pairs_loss",
    "batch_hard_loss",
    "circle_loss",
    "n_pair_loss",
    "ranking_loss",
    "ranking_loss_with_statistics",
    "softmax_loss",
    "supervised_contrastive_loss",
]
