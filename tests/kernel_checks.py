"""Comparisons that the kernels' tests share, and the one place that knows where values mean something.

Tests of Triton programs run on a GPU, in Triton's interpreter (small sizes), or under gpu_path.py, which
compiles for a GPU and runs nothing: it sets VALUES to False, and no comparison is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

VALUES = True
ALL_SIZES = True  # False: the subset that gpu_path compiles in CI
GPU = torch.cuda.is_available()  # also under gpu_path
DEVICE = "cuda" if GPU else "cpu"
T = TypeVar("T")
Step = tuple[Tensor, Tensor]  # a loss and its gradient


def near(
    own: Step, expected: Callable[[], Step], *, value: float, gradient: float, least: float = 0.0
) -> None:
    """The loss within `value` times max(1, loss), the gradient's error within `gradient` times its norm.

    `expected` is computed only where it is compared. least: a norm below which the gradient's error is
    absolute.
    """
    if not VALUES:
        return
    loss, exact = expected()
    off = abs(float(own[0]) - float(loss))
    assert off <= value * max(1.0, abs(float(loss))), f"loss off by {off:.2e} of {float(loss):.3e}"
    error = float((own[1].double() - exact.double()).norm())
    norm = max(float(exact.double().norm()), least)
    assert error <= gradient * norm, f"gradient off by {error / norm if norm else error:.2e} of its norm"


def same_bits(step: Callable[[], Step], repeats: int = 2) -> Step:
    """`step()`, whose repetitions must give the same bits. Once where nothing runs in parallel: the
    interpreter."""
    first = step()
    for _ in range(repeats - 1 if VALUES and GPU else 0):
        again = step()
        assert torch.equal(first[0], again[0]), "another loss from run to run"
        assert torch.equal(first[1], again[1]), "another gradient from run to run"
    return first


def equal(own: Step, expected: Step) -> None:
    """Bit for bit."""
    if VALUES:
        assert torch.equal(own[0], expected[0]) and torch.equal(own[1], expected[1])


def active(gradient: Tensor, share: float = 0.5) -> None:
    """At least `share` of the rows have a gradient, else a comparison of gradients compares little."""
    if VALUES:
        found = float((gradient != 0).any(1).double().mean())
        assert found >= share, f"{found:.1%} of the rows have a gradient"


def nothing(own: Step) -> None:
    """Loss and gradient are 0."""
    if VALUES:
        assert float(own[0]) == 0 and not own[1].any()


def pick(on_gpu: Sequence[T], in_ci: Sequence[T], interpreted: Sequence[T]) -> Sequence[T]:
    """Parameters by where the tests run."""
    return (on_gpu if ALL_SIZES else in_ci) if GPU else interpreted
