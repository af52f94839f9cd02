"""Losses called as pytorch-metric-learning's are: `loss(embeddings, labels, indices_tuple, ref_emb,
ref_labels)`.

Constructors have the library's names and defaults, and take its distance and reducer objects, or a reducer's
name. Value and gradient are the library's, computed in float32 (float64 for float64 rows), which is also the
dtype of the value.

reducer: the library's "avg_non_zero" (over anchors, or triplets, of a loss above 0), "mean" or "sum", which
need each anchor's value and so one process, a backend other than "triton", and no torch.compile; or
"valid_anchors", this package's own mean over the anchors with a positive and a negative: by the fused
programs and over all ranks of a `group`, where it also takes the place of the library's
DistributedLossWrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..batch_hard import batch_hard_loss
from ..logsumexp.circle import circle_loss
from ..logsumexp.n_pair import n_pair_loss
from ..logsumexp.supervised_contrastive import supervised_contrastive_loss
from ..options import one_of, positive

VALID_ANCHORS = "valid_anchors"
REDUCERS = {
    "AvgNonZeroReducer": "avg_non_zero",
    "MeanReducer": "mean",
    "SumReducer": "sum",
}


class Options(TypedDict, total=False):
    """distance, reducer: the library's objects; a reducer also by name. group, backend, precision: of every
    loss here."""

    distance: object
    reducer: object
    group: dist.ProcessGroup | None
    backend: str
    precision: str


class _Loss(nn.Module):
    """What the losses share: the call, and the reducer."""

    default_reducer = "avg_non_zero"
    pairs = "it uses every pair that the labels make"

    def __init__(self, loss: Callable[..., Tensor], options: Options) -> None:
        super().__init__()
        self.loss = loss
        self.call: dict[str, Any] = {
            key: options[key] for key in ("group", "backend", "precision") if key in options
        }
        self.reducer = _reducer(options.get("reducer"), self.default_reducer)
        if self.reducer != VALID_ANCHORS and not self.one_process():
            raise ValueError(
                f"reducer {self.reducer!r} is of one process, and not of the triton backend; "
                f"pass reducer={VALID_ANCHORS!r}, the mean over the anchors with a positive and a negative"
            )

    def one_process(self) -> bool:
        return self.call.get("group") is None and self.call.get("backend") != "triton"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss (0-d) of embeddings [B, D] and labels [B], whose candidates are ref_emb [R, D] and
        ref_labels [R] where given. ValueError for what cannot be honoured exactly.
        """
        name = type(self).__name__
        if labels is None:
            raise ValueError(f"labels: {name} finds its pairs by them, got None; pass one integer per row")
        if indices_tuple is not None:
            raise ValueError(f"indices_tuple: {name} takes none, {self.pairs}; pass None and drop the miner")
        call = self.call
        if ref_emb is not None or ref_labels is not None:
            call = {**call, "reference": _reference(ref_emb, ref_labels, labels)}
        if isinstance(labels, Tensor) and isinstance(embeddings, Tensor):
            labels = labels.to(embeddings.device)  # as the library does
        if self.reducer == VALID_ANCHORS:
            return self.loss(embeddings, labels, **call)
        value_B = self.loss(embeddings, labels, reduction="none", **call)
        return self.reduced(value_B, labels, ref_labels)

    def reduced(self, value_B: Tensor, labels_B: Tensor, candidates_C: Tensor | None) -> Tensor:
        """The library's reduction of each anchor's value, which is 0 where it has no pair of either kind.

        candidates_C: labels of the rows that anchors are compared with; None: of the batch.
        """
        return _weighted(value_B, torch.ones_like(value_B), self.reducer)


class BatchHardTripletMarginLoss(_Loss):
    """The library's TripletMarginLoss, of the triplets that its BatchHardMiner finds: there is no miner to
    call.

    distance: LpDistance of p = 2 (to the power 1 or 2, normalised or not; None: normalised) or
    CosineSimilarity. smooth_loss: log(1 + exp(gap)), with margin=0.
    """

    pairs = "it mines the hardest triplets itself"

    def __init__(self, margin: float = 0.05, smooth_loss: bool = False, **options: Unpack[Options]) -> None:
        if smooth_loss and margin:
            raise ValueError(f"margin: {margin} with smooth_loss, which has none here; pass margin=0")
        distance, normalize = _distance(options.get("distance"))
        bound: float | Literal["soft"] = "soft" if smooth_loss else margin
        loss = partial(batch_hard_loss, margin=bound, distance=distance, normalize=normalize)
        super().__init__(loss, options)

    def reduced(self, value_B: Tensor, labels_B: Tensor, candidates_C: Tensor | None) -> Tensor:
        _, valid_B = _pairs(labels_B, candidates_C)  # the miner has a triplet of these anchors alone
        return _weighted(value_B, valid_B.to(value_B.dtype), self.reducer)


class SupConLoss(_Loss):
    """The library's SupConLoss. distance: CosineSimilarity (None) or DotProductSimilarity."""

    def __init__(self, temperature: float = 0.1, **options: Unpack[Options]) -> None:
        normalize = _normalises(options.get("distance"))
        loss = partial(supervised_contrastive_loss, temperature=temperature, normalize=normalize)
        super().__init__(loss, options)


class NTXentLoss(_Loss):
    """The library's NTXentLoss. distance: CosineSimilarity (None) or DotProductSimilarity.

    The library's reducers run over positive pairs, `valid_anchors` over anchors: the same where all
    identities have equally many rows. Its NPairsLoss draws one pair per identity, and has no counterpart.
    """

    default_reducer = "mean"

    def __init__(self, temperature: float = 0.07, **options: Unpack[Options]) -> None:
        normalize = _normalises(options.get("distance"))
        loss = partial(n_pair_loss, scale=1 / positive("temperature", temperature), normalize=normalize)
        super().__init__(loss, options)
        if self.reducer == "avg_non_zero":
            raise ValueError('reducer "avg_non_zero": positive pairs are summed before it; pass "mean"')

    def reduced(self, value_B: Tensor, labels_B: Tensor, candidates_C: Tensor | None) -> Tensor:
        positives_B, valid_B = _pairs(labels_B, candidates_C)
        return _weighted(value_B, (positives_B * valid_B).to(value_B.dtype), self.reducer)


class CircleLoss(_Loss):
    """The library's CircleLoss, of cosine similarity."""

    def __init__(self, m: float = 0.4, gamma: float = 80, **options: Unpack[Options]) -> None:
        if not _normalises(options.get("distance")):
            raise ValueError("distance: circle loss is of cosine similarity; pass CosineSimilarity()")
        super().__init__(partial(circle_loss, margin=m, gamma=gamma), options)


def _weighted(value_B: Tensor, weight_B: Tensor, reducer: str) -> Tensor:
    """Reduce values that stand for `weight` equal entries each; 0 of none."""
    if reducer == "avg_non_zero":
        weight_B = weight_B * (value_B > 0)
    total = (value_B * weight_B).sum()
    return total if reducer == "sum" else total / weight_B.sum().clamp(min=1)


def _pairs(labels_B: Tensor, candidates_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positives of each row as an anchor [B], and whether it has a negative too [B]."""
    sorted_C = torch.sort(labels_B if candidates_C is None else candidates_C).values
    same_B = torch.searchsorted(sorted_C, labels_B, right=True) - torch.searchsorted(sorted_C, labels_B)
    positives_B = same_B - 1 if candidates_C is None else same_B  # without itself
    return positives_B, (positives_B > 0) & (same_B < len(sorted_C))


def _reference(ref_emb: object, ref_labels: object, labels: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(ref_emb, Tensor) or not isinstance(ref_labels, Tensor):
        raise ValueError("ref_emb, ref_labels: expected a torch.Tensor each; pass both, or neither")
    if ref_labels is labels:
        raise ValueError(
            "ref_labels: the batch's own labels, by which the library leaves each row out of its own "
            "candidates; pass neither ref_emb nor ref_labels, or ref_labels.clone() where a row may be its "
            "own positive"
        )
    return ref_emb, ref_labels.to(ref_emb.device)


def _reducer(reducer: object, default: str) -> str:
    if reducer is None:
        return default
    known = (*REDUCERS.values(), VALID_ANCHORS)
    kind = type(reducer).__name__
    return one_of("reducer", reducer if isinstance(reducer, str) else REDUCERS.get(kind, kind), known)


Distance = Literal["euclidean", "squared_euclidean", "cosine"]


def _distance(distance: object) -> tuple[Distance, bool]:
    """The word of `batch_hard_loss` for a distance of the library, and whether it normalises."""
    if distance is None:
        return "euclidean", True
    kind, p, power = type(distance).__name__, getattr(distance, "p", None), getattr(distance, "power", None)
    if kind == "CosineSimilarity" and power == 1:
        return "cosine", True
    if kind == "LpDistance" and p == 2 and power in (1, 2):
        word: Distance = "euclidean" if power == 1 else "squared_euclidean"
        return word, bool(getattr(distance, "normalize_embeddings", True))
    raise ValueError(
        f"distance: no batch-hard loss of {kind} (p={p}, power={power}); pass LpDistance of p=2 and power 1 "
        "or 2, or CosineSimilarity of power 1"
    )


def _normalises(distance: object) -> bool:
    """Whether a similarity of the library is of normalised rows."""
    if distance is None:
        return True
    kind, p, power = type(distance).__name__, getattr(distance, "p", None), getattr(distance, "power", None)
    if kind not in ("CosineSimilarity", "DotProductSimilarity") or power != 1 or p != 2:
        raise ValueError(
            f"distance: this loss is of similarities, got {kind} (p={p}, power={power}); "
            "pass CosineSimilarity() or DotProductSimilarity() of p=2 and power 1"
        )
    return bool(getattr(distance, "normalize_embeddings", True))
