"""The losses as modules: options once, then `module(embeddings, labels)`, or with `reference=` too.

A scale or temperature may be learned: it is then a parameter, stored as its logarithm so that it stays above
0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .batch_hard import batch_hard_loss
from .logsumexp.all_pairs import all_pairs_loss
from .logsumexp.circle import circle_loss
from .logsumexp.n_pair import n_pair_loss
from .logsumexp.supervised_contrastive import supervised_contrastive_loss
from .options import positive
from .ranking import ranking_loss
from .softmax import softmax_loss


class LossModule(nn.Module):
    """A loss with its options, which are those of the function (TypeError for one it does not have).

    Calling it with (embeddings [B, D], labels [B]) gives what the function gives. The state dict holds what
    is learned and nothing else.
    """

    loss: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        known = {key: v for key, v in (type(self).loss.__kwdefaults__ or {}).items() if key != "reference"}
        unknown = sorted(set(options) - set(known))
        if unknown:
            names = ", ".join(known)
            raise TypeError(f"{type(self).__name__}: no option {unknown[0]}; options: {names}")
        self.options = options

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return type(self).loss(embeddings, labels, **self.options)

    def extra_repr(self) -> str:
        shown = {key: value for key, value in self.options.items() if key != "group"}
        return ", ".join(f"{key}={value!r}" for key, value in shown.items())


class PairLoss(LossModule):
    """A loss of pairs. `reference`, a pair (rows [R, D], labels [R]) that are the only candidates, belongs to
    the call, as it changes with the batch; see `maskreid_kernels.options`.
    """

    def __init__(self, **options: Any) -> None:
        if "reference" in options:
            name = type(self).__name__
            raise TypeError(
                f"{name}: reference is of the call: {name}(...)(embeddings, labels, reference=...)"
            )
        super().__init__(**options)

    def forward(
        self, embeddings: Tensor, labels: Tensor, reference: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        return type(self).loss(embeddings, labels, reference=reference, **self.options)


class _Learnable(PairLoss):
    """`learnable=True` makes the number `learned` names a parameter, of the value given or the function's
    default."""

    learned: ClassVar[str]

    def __init__(self, *, learnable: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.register_parameter("log_" + self.learned, None)
        if learnable:
            default = (type(self).loss.__kwdefaults__ or {})[self.learned]
            value = positive(self.learned, self.options.pop(self.learned, default))
            setattr(self, "log_" + self.learned, nn.Parameter(torch.tensor(math.log(value))))

    def forward(
        self, embeddings: Tensor, labels: Tensor, reference: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        logarithm = getattr(self, "log_" + self.learned)
        own = {} if logarithm is None else {self.learned: logarithm.exp()}
        return type(self).loss(embeddings, labels, reference=reference, **self.options, **own)

    def extra_repr(self) -> str:
        logarithm = getattr(self, "log_" + self.learned)
        shown = super().extra_repr()
        if logarithm is None:
            return shown
        now = f"{self.learned}={math.exp(float(logarithm.detach())):.4g} (learned)"
        return f"{now}, {shown}" if shown else now


class RankingLoss(PairLoss):
    """`ranking_loss`."""

    loss = staticmethod(ranking_loss)


class BatchHardLoss(PairLoss):
    """`batch_hard_loss`."""

    loss = staticmethod(batch_hard_loss)


class CircleLoss(PairLoss):
    """`circle_loss`."""

    loss = staticmethod(circle_loss)


class SoftmaxLoss(LossModule):
    """`softmax_loss`, of (logits [B, C], targets [B])."""

    loss = staticmethod(softmax_loss)


class NPairLoss(_Learnable):
    """`n_pair_loss`; learnable: its scale."""

    loss, learned = staticmethod(n_pair_loss), "scale"


class AllPairsLoss(_Learnable):
    """`all_pairs_loss`; learnable: its scale, without a margin."""

    loss, learned = staticmethod(all_pairs_loss), "scale"


class SupervisedContrastiveLoss(_Learnable):
    """`supervised_contrastive_loss`; learnable: its temperature."""

    loss, learned = staticmethod(supervised_contrastive_loss), "temperature"
