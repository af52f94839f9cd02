"""Batch-hard triplet losses called as sentence-transformers': of the model, and of tokenised sentences with
labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor, nn

from ..batch_hard import batch_hard_loss

Distance = Literal["euclidean", "squared_euclidean", "cosine"]
DISTANCES: dict[str, Distance] = {
    "euclidean": "euclidean",
    "squared_euclidean": "squared_euclidean",
    "cosine": "cosine",
    # the library's functions
    "euclidean_distance": "euclidean",
    "eucledian_distance": "euclidean",
    "cosine_distance": "cosine",
}


class BatchHardTripletLoss(nn.Module):
    """The library's BatchHardTripletLoss: `loss([features], labels)` of the model's "sentence_embedding".

    distance_metric: "euclidean", "squared_euclidean" or "cosine", or the library's function of that name. The
    library wants two sentences of each label in a batch, and takes 0 for the distance of a positive that is
    not there; here a sentence without one does not count. group: the batch is that of all ranks (the library
    stays within each).
    """

    def __init__(
        self,
        model: nn.Module,
        distance_metric: str | Callable[..., Tensor] = "euclidean",
        margin: float = 5,
        *,
        group: dist.ProcessGroup | None = None,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.sentence_embedder = model
        self.distance = _distance(distance_metric)
        self.triplet_margin: float | Literal["soft"] = margin
        self.call: dict[str, Any] = {"group": group, "backend": backend, "precision": precision}

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss (0-d) of sentence_features[0], what the model takes, and labels [B] or [B, 1]."""
        embeddings: Tensor = self.sentence_embedder(sentence_features[0])["sentence_embedding"]
        return self.compute_loss_from_embeddings([embeddings], labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """The loss (0-d) of embeddings[0] [B, D] and labels [B] or [B, 1]."""
        return batch_hard_loss(
            embeddings[0],
            labels.view(-1),
            margin=self.triplet_margin,
            distance=self.distance,
            **self.call,
        )

    def get_config_dict(self) -> dict[str, Any]:
        """For the library's model card."""
        return {"distance_metric": self.distance, "margin": self.triplet_margin}


class BatchHardSoftMarginTripletLoss(BatchHardTripletLoss):
    """The library's BatchHardSoftMarginTripletLoss: log(1 + exp(gap)) in the place of a margin."""

    def __init__(
        self,
        model: nn.Module,
        distance_metric: str | Callable[..., Tensor] = "euclidean",
        *,
        group: dist.ProcessGroup | None = None,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        super().__init__(model, distance_metric, group=group, backend=backend, precision=precision)
        self.triplet_margin = "soft"

    def get_config_dict(self) -> dict[str, Any]:
        return {"distance_metric": self.distance}


def _distance(metric: str | Callable[..., Tensor]) -> Distance:
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", repr(metric))
    if name not in DISTANCES:
        known = ", ".join(repr(word) for word in ("euclidean", "squared_euclidean", "cosine"))
        raise ValueError(f"distance_metric: expected one of {known}, or the library's function, got {name}")
    return DISTANCES[name]
