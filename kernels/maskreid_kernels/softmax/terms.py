"""The constant of the softmax loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SoftmaxTerms:
    """label_smoothing: the part of a target's share 1 that is spread evenly over all classes."""

    label_smoothing: float
