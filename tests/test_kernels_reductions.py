"""reduction, ignore_index and label smoothing, in every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import maskreid_kernels as kernels
from gloo import run_ranks

CASES = [
    *((name, {}) for name in kernels.LOSSES),
    ("ranking", {"normalize": False, "negatives": "violating"}),
    ("batch_hard", {"distance": "cosine", "margin": "soft"}),
    ("n_pair", {"normalize": False}),
    ("softmax", {"label_smoothing": 0.2}),
]


def backends(name: str) -> tuple[str, ...]:
    return (
        ("reference", "chunked", "auto") if name == "softmax" else ("reference", "dense", "chunked", "auto")
    )


def batch() -> tuple[Tensor, Tensor]:
    """One identity has a single row, which is no valid anchor."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 4])
    return torch.randn(12, 6, generator=generator, dtype=torch.float64) / 2, labels


@pytest.mark.parametrize(("name", "options"), CASES)
def test_values_of_anchors_and_their_sum(name: str, options: dict[str, object]) -> None:
    x, y = batch()
    weight = torch.linspace(-1, 2, 12, dtype=torch.float64)
    counted = torch.ones(12, dtype=torch.bool) if name == "softmax" else y != 2
    found = []
    for backend in backends(name):
        rows = x.clone().requires_grad_()
        call = {"backend": backend, **options}
        values = kernels.LOSSES[name](rows, y, reduction="none", **call)
        mean = kernels.LOSSES[name](x, y, **call)
        assert values.shape == (12,) and not values[~counted].any()
        torch.testing.assert_close(values[counted].mean(), mean)
        torch.testing.assert_close(values.sum(), kernels.LOSSES[name](x, y, reduction="sum", **call))
        (values * weight).sum().backward()
        found.append((values.detach(), rows.grad))
    for values, gradient in found[1:]:
        torch.testing.assert_close(values, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_ignored_rows_are_neither_anchors_nor_candidates(
    name: str, options: dict[str, object], reduction: str
) -> None:
    x, y = batch()
    left_out = torch.tensor([1, 5, 9])
    kept = torch.ones(12, dtype=torch.bool).index_fill(0, left_out, False)
    marked = y.index_fill(0, left_out, -1)
    for backend in backends(name):
        call = {"backend": backend, "reduction": reduction, **options}
        rows, few = x.clone().requires_grad_(), x[kept].requires_grad_()
        found = kernels.LOSSES[name](rows, marked, ignore_index=-1, **call)
        expected = kernels.LOSSES[name](few, y[kept], **call)
        found.sum().backward()
        expected.sum().backward()
        if reduction == "none":
            assert found.shape == (12,) and not found[~kept].any()
            found = found[kept]
        torch.testing.assert_close(found, expected)
        assert rows.grad is not None and not rows.grad[~kept].any()
        torch.testing.assert_close(rows.grad[kept], few.grad)


@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
def test_label_smoothing_is_torchs(backend: str) -> None:
    x, y = batch()
    rows, same = (x.clone().requires_grad_() for _ in range(2))
    found = kernels.softmax_loss(rows, y, label_smoothing=0.3, backend=backend)
    expected = F.cross_entropy(same, y, label_smoothing=0.3)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(rows.grad, same.grad)
    with pytest.raises(ValueError, match="label_smoothing: expected a number in"):
        kernels.softmax_loss(x, y, label_smoothing=1.5, backend=backend)


def test_where_there_are_no_values_of_anchors() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match='no triton backend; use backend="chunked"'):
        kernels.ranking_loss(x, y, reduction="none", backend="triton")
    torch._dynamo.reset()
    compiled = torch.compile(kernels.ranking_loss, backend="eager")
    values = compiled(x, y, reduction="none", backend="reference")
    torch.testing.assert_close(values, kernels.ranking_loss(x, y, reduction="none"))


def run_rank(rank: int, world: int) -> None:
    x, y = batch()
    marked = y.index_fill(0, torch.tensor([1, 9]), -1)
    own = slice(0, 5) if rank == 0 else slice(5, 12)
    for name in ("ranking", "circle", "softmax"):
        call = {"reduction": "sum", "ignore_index": -1}
        whole, part = x.clone().requires_grad_(), x[own].clone().requires_grad_()
        expected = kernels.LOSSES[name](whole, marked, **call)
        found = kernels.LOSSES[name](part, marked[own], group=dist.group.WORLD, **call)
        torch.testing.assert_close(found, expected)
        expected.backward()
        found.backward()
        assert whole.grad is not None and part.grad is not None
        torch.testing.assert_close(part.grad, world * whole.grad[own])
        with pytest.raises(ValueError, match='reduction "none" is of one process'):
            kernels.LOSSES[name](part, marked[own], group=dist.group.WORLD, reduction="none")


def test_sums_over_ranks(tmp_path: Path) -> None:
    run_ranks(run_rank, 2, tmp_path)
