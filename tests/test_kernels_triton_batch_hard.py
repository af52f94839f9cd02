"""The batch-hard loss's Triton backend against the reference in float64. Interpreted without a GPU, else run
on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import kernel_checks
from gloo import run_ranks
from maskreid_kernels import batch_hard_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DISTANCES = ["euclidean", "squared_euclidean", "cosine"]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory holds NaN, or a huge negative number: whatever is read before it is written
    shows."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def fill(*arguments: Any, **options: Any) -> Tensor:
        memory: Tensor = allocate(*arguments, **options)
        return memory.fill_(float("nan") if memory.dtype.is_floating_point else -(2**30))

    return fill


def batch(rows: int, columns: int, identities: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(identities, (rows,), generator=generator) - 2
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), labels


def value_and_gradient(embeddings: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    rows = embeddings.to(DEVICE).detach().clone().requires_grad_()
    loss = batch_hard_loss(rows, labels.to(DEVICE), **options)
    (3 * loss).backward()
    assert rows.grad is not None
    return loss.detach().cpu(), rows.grad.cpu()


def check(embeddings: Tensor, labels: Tensor, tolerance: float = 1e-9, **options: Any) -> None:
    """1e-9 in float64: torch's softplus is linear beyond 20, which is good to 2e-9."""
    precision = "auto" if embeddings.dtype == torch.float64 else "ieee"
    own = value_and_gradient(embeddings, labels, backend="triton", precision=precision, **options)
    assert own[0].dtype == embeddings.dtype and own[0].shape == ()

    def reference() -> tuple[Tensor, Tensor]:
        return value_and_gradient(embeddings.double(), labels, backend="reference", **options)

    kernel_checks.near(own, reference, value=tolerance, gradient=tolerance, least=1.0)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("margin", [0.3, "soft"])
def test_ragged_shapes(margin: float | str, distance: str) -> None:
    for rows, columns, identities in [(1, 3, 1), (2, 1, 2), (33, 1, 5), (70, 13, 20), (40, 257, 9)]:
        embeddings, labels = batch(rows, columns, identities)
        check(embeddings, labels, margin=margin, distance=distance)
        check(embeddings.float(), labels.int(), 2e-6, margin=margin, distance=distance, normalize=True)


def test_many_tiles() -> None:
    embeddings, labels = batch(200, 130, 40)
    check(embeddings, labels)
    check(embeddings.float(), labels, 2e-6, distance="cosine")


@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [0, 1, 2, 3], [5, 5, -1, 2], [-(2**40), 2**40] * 2])
def test_few_or_no_valid_anchors(labels: list[int]) -> None:
    embeddings, _ = batch(len(labels), 3, 1)
    for distance in DISTANCES:
        check(embeddings, torch.tensor(labels, dtype=torch.int64), distance=distance, margin="soft")


def test_ties_and_distance_zero() -> None:
    # Exact arithmetic. Rows 0, 1, 5 are equal (distance 0 inside an identity and across), 2 and 3 tie for row
    # 0.
    rows = torch.tensor([[0.0, 0], [0, 0], [2, 0], [0, 2], [4, 0], [0, 0]], dtype=torch.float64)
    for names in ([0, 0, 1, 1, 2, 2], [0, 1, 0, 0, 1, 2], [0, 1, 2, 2, 0, 1]):
        for distance in ("euclidean", "squared_euclidean"):
            check(rows, torch.tensor(names), distance=distance)
            check(rows.float(), torch.tensor(names), 1e-6, distance=distance)
    _, gradient = value_and_gradient(
        torch.ones(40, 3), torch.arange(40) // 4, backend="triton", precision="ieee"
    )
    assert not gradient.any()
    embeddings, labels = batch(20, 5, 6)
    value, gradient = value_and_gradient(embeddings.repeat(4, 1), labels.repeat(4), backend="triton")
    assert value.isfinite() and gradient.isfinite().all()


def test_zero_row_and_distances_of_a_thousandth() -> None:
    embeddings, _ = batch(6, 64, 1)
    embeddings[1] = 0
    check(embeddings, torch.tensor([0, 0, 1, 1, 2, 0]), normalize=True, margin="soft")
    check(embeddings, torch.tensor([0, 0, 1, 1, 2, 0]), distance="cosine", margin="soft")
    near = torch.nn.functional.normalize(embeddings[2:5]) * torch.tensor([[1.0], [1.0], [-1.0]])
    near[1] = near[0] + 1e-3 * near[1]
    check(near.float(), torch.tensor([0, 0, 1]), 1e-5, margin=2.5)


def test_a_row_that_is_not_finite_shows() -> None:
    embeddings, labels = batch(20, 5, 4)
    for bad in (float("nan"), float("-inf")):
        embeddings[3, 2], labels[3] = bad, 99  # alone with its identity: no anchor of its own
        value, _ = value_and_gradient(embeddings, labels, backend="triton")
        assert value.isnan()


def test_packed_minimum_finds_a_nearest_negative() -> None:
    # What the bf16 preset runs, here on float32 rows: the pick's distance is the least, to the bits that
    # packing keeps.
    from maskreid_kernels.batch_hard.terms import row_squares
    from maskreid_kernels.batch_hard.triton import nearest_negatives
    from maskreid_kernels.precision import PRECISIONS
    from maskreid_kernels.ranks import RankLayout
    from maskreid_kernels.triton_tiles import sort_by_identity

    x, labels = batch(150, 70, 30)
    x[40:80] = x[:40]  # duplicates, some of another identity: distances of 0
    x, labels = x.float().to(DEVICE), labels.to(DEVICE)
    rows = sort_by_identity(labels, RankLayout(None, 0, (len(x),)))
    best_CM, place_CM = nearest_negatives(x, row_squares(x), rows, PRECISIONS["ieee"], packed=True)
    assert best_CM.dtype == torch.int32 and place_CM is not None
    if not kernel_checks.VALUES:
        return
    chunk_M = best_CM.argmin(0, keepdim=True)
    pick_M = rows.order_N[place_CM.gather(0, chunk_M).squeeze(0).long()]
    anchor_M = rows.own_row()
    square_NN = torch.cdist(x.double(), x.double()).square()
    negative_NN = labels[:, None] != labels
    assert negative_NN[anchor_M, pick_M].all()
    least_M = square_NN.masked_fill(~negative_NN, torch.inf).min(1).values[anchor_M]
    assert (square_NN[anchor_M, pick_M] <= least_M * (1 + 2**-15) + 1e-4).all()


def test_many_anchors_pick_one_row() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(90, 7, generator=generator, dtype=torch.float64)
    embeddings[0] = 0  # the hub: nearest to all
    check(embeddings, torch.cat([torch.tensor([99, 99]), torch.arange(88) // 4]))


def test_the_same_bits_twice() -> None:
    embeddings, labels = batch(100, 40, 15)
    runs = [
        value_and_gradient(embeddings.float(), labels, backend="triton", precision="ieee") for _ in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(distance: str) -> None:
    embeddings, labels = batch(7, 3, 3, seed=5)
    options: dict[str, Any] = {"margin": "soft", "distance": distance, "backend": "triton"}
    rows, labels = embeddings.to(DEVICE).requires_grad_(), labels.to(DEVICE)
    assert torch.autograd.gradcheck(lambda x: batch_hard_loss(x, labels, **options), rows)


def test_double_backward_is_refused() -> None:
    embeddings, labels = batch(9, 4, 3)
    embeddings = embeddings.to(DEVICE).requires_grad_()
    loss = batch_hard_loss(embeddings, labels.to(DEVICE), backend="triton")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, embeddings, create_graph=True)


def test_low_precision_rows() -> None:
    embeddings, labels = batch(60, 33, 12)
    low = embeddings.bfloat16()
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="interpreter"):
            batch_hard_loss(low, labels, backend="triton")
        return
    expected, gradient = value_and_gradient(low.double(), labels, backend="reference")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value, own = value_and_gradient(low, labels, backend="triton")
    assert value.dtype == torch.float32 and own.dtype == torch.bfloat16
    assert float(value) == pytest.approx(float(expected), rel=2e-2)
    assert (own.double() - gradient).norm() < 0.2 * gradient.norm()  # a near tie may be picked otherwise


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"precision": "tf32", "backend": "chunked"}])
def test_bad_precision(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="precision"):
        batch_hard_loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), **options)


def run_rank(rank: int, world: int) -> None:
    for split in [(31, 14), (0, 30), (0, 0)]:
        embeddings, labels = batch(sum(split), 24, 9)
        whole = embeddings.float().requires_grad_()
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        for distance in DISTANCES:
            options: dict[str, Any] = {"distance": distance, "margin": "soft"}
            expected = batch_hard_loss(whole, labels, backend="reference", **options)
            (gradient,) = torch.autograd.grad(expected, whole)
            rows = embeddings[own].float().requires_grad_()
            loss = batch_hard_loss(
                rows, labels[own], backend="triton", precision="ieee", group=dist.group.WORLD, **options
            )
            loss.backward()
            assert abs(float(loss) - float(expected)) <= 1e-6 * max(1.0, float(expected))
            assert rows.grad is not None
            error = torch.zeros_like(whole)
            error[own] = rows.grad / world - gradient[own]
            dist.all_reduce(error)
            assert error.norm() <= 1e-6 * gradient.norm().clamp(min=1e-3), (split, distance)


@pytest.mark.skipif(DEVICE == "cuda", reason="the ranks are processes on the CPU")
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(run_rank, 2, tmp_path)
