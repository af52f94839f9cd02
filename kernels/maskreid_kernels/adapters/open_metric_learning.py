"""Batch-hard triplet loss called as open-metric-learning's TripletLossWithMiner: `criterion(features,
labels)`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..batch_hard import batch_hard_loss
from ..blocks import row_blocks
from ..options import Reduction

HARD = "HardTripletsMiner"


class TripletLossWithMiner(nn.Module):
    """The library's TripletLossWithMiner with its HardTripletsMiner: euclidean distance of the features as
    they are.

    margin: above 0, or None for log(1 + exp(gap)). miner: the library's HardTripletsMiner or its name; the
    library's default, all triplets, is not computed here. need_logs: `last_logs` then holds what the
    library's does, for one more pass over the distances and three host syncs a call.
    Where the library refuses a batch (an identity of one row, or one identity), such rows do not count.
    """

    criterion_name = "triplet"

    def __init__(
        self,
        margin: float | None,
        miner: object = None,
        reduction: Reduction = "mean",
        need_logs: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        kind = miner if isinstance(miner, str) else type(miner).__name__
        if kind != HARD:
            what = "the library's default, all triplets," if miner is None else kind
            raise ValueError(f"miner: {what} is not computed here, the hardest are; pass miner={HARD!r}")
        if margin is not None and not margin > 0:
            raise ValueError(f"margin: expected a number above 0, or None for the soft margin, got {margin}")
        self.margin, self.reduction, self.need_logs, self.backend = margin, reduction, need_logs, backend
        self._last_logs: dict[str, float] = {}

    def forward(self, features: Tensor, labels: Tensor | list[int]) -> Tensor:
        """The loss of features [B, D] and labels [B] (or [B, 1]): 0-d, or [B] with reduction="none"."""
        labels_B = torch.as_tensor(labels, device=features.device)
        labels_B = labels_B.squeeze(1) if labels_B.dim() == 2 and labels_B.shape[1] == 1 else labels_B
        margin: float | Literal["soft"] = "soft" if self.margin is None else self.margin
        if not self.need_logs:
            return batch_hard_loss(
                features, labels_B, margin=margin, reduction=self.reduction, backend=self.backend
            )
        value_B = batch_hard_loss(features, labels_B, margin=margin, reduction="none", backend=self.backend)
        valid_B = self._log(value_B.detach(), features.detach(), labels_B)
        if self.reduction == "none":
            return value_B
        return value_B.sum() if self.reduction == "sum" else value_B.sum() / valid_B.sum().clamp(min=1)

    def _log(self, value_B: Tensor, features: Tensor, labels_B: Tensor) -> Tensor:
        """Write `last_logs`; which anchors count [B], bool."""
        positive_B, negative_B = hardest_distances(features.to(value_B.dtype), labels_B)
        valid_B = positive_B.isfinite() & negative_B.isfinite()
        count = valid_B.sum().clamp(min=1)
        self._last_logs = {
            "active_tri": float((value_B > 0).sum() / count),
            "pos_dist": float(positive_B.where(valid_B, 0).sum() / count),
            "neg_dist": float(negative_B.where(valid_B, 0).sum() / count),
        }
        return valid_B

    @property
    def last_logs(self) -> dict[str, float]:
        """Of the last batch, with need_logs: the share of active triplets, mean distance of positives and
        negatives."""
        return self._last_logs


def hardest_distances(x_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Largest distance to a positive and smallest to a negative by row [B]; infinite where there is none."""
    positive_B, negative_B = x_BD.new_empty(len(x_BD)), x_BD.new_empty(len(x_BD))
    for rows in row_blocks(len(x_BD), 2 * len(x_BD) * x_BD.element_size()):
        distance_bB = torch.cdist(x_BD[rows], x_BD)
        same_bB = labels_B[rows, None] == labels_B
        negative_B[rows] = distance_bB.masked_fill(same_bB, torch.inf).amin(1)
        same_bB[:, rows].fill_diagonal_(False)
        positive_B[rows] = distance_bB.masked_fill_(~same_bB, -torch.inf).amax(1)
    return positive_B, negative_B
