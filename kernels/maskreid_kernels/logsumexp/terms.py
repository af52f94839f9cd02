"""What a loss of the log-sum-exp family has to say beside its exponent f.

Names: V = valid anchors, N = rows of all ranks, b = rows of a block, P = rows of the largest identity.
A = log-sum-exp of f over an anchor's negatives. Lists of P places hold an anchor's positives, as
`Positives.of_rows` returns them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .exponent import Exponent

# exp(40) is 2.4e17: it and its inverse leave float32 room for sums over any batch.
BOUNDED_SCALE = 40.0


@dataclass(frozen=True)
class LogSumExpTerms(ABC):
    """A loss, by its formula (`loss`) and by the pieces that the streaming backends need (`anchor`,
    `pull`)."""

    exponent: Exponent
    normalize: bool

    @property
    def bounded(self) -> bool:
        """Whether exp(f) and its sums need no maximum subtracted: |S| <= 1, f linear, its scale moderate."""
        return self.normalize and self.exponent.margin is None and abs(self.exponent.scale) <= BOUNDED_SCALE

    @property
    def exact_log_weight(self) -> bool:
        """Whether `anchor` gives log_weight in float64 because float32 may not hold it beside a large A."""
        return False

    @abstractmethod
    def loss(self, S_VN: Tensor, positive_VN: Tensor, negative_VN: Tensor) -> Tensor:
        """L(k) of valid anchors [V], differentiable: the specification. The masks are bool."""

    @abstractmethod
    def anchor(self, A_b: Tensor, S_bP: Tensor, positive_bP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(value_b, log_weight_b, level_b) of anchors; anything finite or not for anchors that are not valid.

        value: L(k). log_weight: log dL(k)/dA - A, so that dL(k)/dS_kj = exp(f(S_kj) + log_weight_k) f'(S_kj)
        on a negative j. level: the one number of the anchor that `pull` needs.
        """

    @abstractmethod
    def pull(self, S_bP: Tensor, level_bP: Tensor, positives_b1: Tensor) -> Tensor:
        """dL(k)/dS_ki, of level_bP's shape (which ends in [b, P]), of pairs (anchor, positive).

        positives_b1: how many positives the identity's anchors have.
        """

    def anchor_numbers(self, A_b: Tensor, S_bP: Tensor, positive_bP: Tensor, valid_b: Tensor) -> Tensor:
        """`anchor` as [b, 3] float64; value 0, log weight -inf and level 0 for anchors that are not valid."""
        value_b, log_weight_b, level_b = self.anchor(A_b, S_bP, positive_bP)
        numbers = (
            torch.where(valid_b, value_b, 0),
            torch.where(valid_b, log_weight_b, -torch.inf),
            torch.where(valid_b, level_b, 0),
        )
        return torch.stack([number.double() for number in numbers], 1)
