"""The function f whose exponentials a loss of this family sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exponent:
    """f(S) = scale S; with a margin m, circle's f(S) = scale [S + m]_+ (S - m), its bracket a constant to
    autograd.

    Circle's is computed as scale (max(S, -m)^2 - m^2), the same number.
    """

    scale: float
    margin: float | None = None

    def __call__(self, S: Tensor) -> Tensor:
        """f(S) for autograd, as written above."""
        if self.margin is None:
            return self.scale * S
        return self.scale * (S.detach() + self.margin).relu() * (S - self.margin)

    def value(self, S: Tensor) -> Tensor:
        """f(S), without a gradient."""
        return S * self.scale if self.margin is None else self.value_(S.clone())

    def value_(self, S: Tensor) -> Tensor:
        """f(S) in place."""
        if self.margin is None:
            return S.mul_(self.scale)
        return S.clamp_(min=-self.margin).square_().sub_(self.margin**2).mul_(self.scale)

    def slope(self, S: Tensor) -> Tensor | float:
        """f'(S), the bracket held constant."""
        if self.margin is None:
            return self.scale
        return S.clamp(min=-self.margin).add_(self.margin).mul_(self.scale)


def least_exponent(dtype: torch.dtype) -> float:
    """Where exp reaches the smallest normal number. Below it exp is 0 to any sum, and a hundred times slower
    on CPUs."""
    return math.log(torch.finfo(dtype).tiny)
