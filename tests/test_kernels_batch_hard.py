"""The batch-hard loss against a loop over anchors in float64, and against pytorch-metric-learning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskreid_kernels import batch_hard_loss

BACKENDS = ["reference", "dense", "chunked"]
DISTANCES = ["euclidean", "squared_euclidean", "cosine"]


def distance_between(a: Tensor, b: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        cosine: Tensor = a @ b / (a.norm() * b.norm())
        return 1 - cosine
    square: Tensor = ((a - b) ** 2).sum()
    if distance == "squared_euclidean":
        return square
    return square.sqrt() if square > 0 else square * 0


def oracle(
    embeddings: Tensor, labels: Tensor, margin: float | str, distance: str, normalize: bool
) -> tuple[Tensor, Tensor]:
    rows = embeddings.detach().double().requires_grad_()
    x = rows / rows.norm(dim=1, keepdim=True) if normalize else rows
    names, losses = labels.tolist(), []
    for k in range(len(names)):
        to = [distance_between(x[k], x[j], distance) for j in range(len(names))]
        others = [to[i] for i in range(len(names)) if i != k and names[i] == names[k]]
        strangers = [to[j] for j in range(len(names)) if names[j] != names[k]]
        if others and strangers:
            gap = max(others, key=float) - min(strangers, key=float)  # first of equals
            losses.append(F.softplus(gap) if isinstance(margin, str) else torch.clamp(gap + margin, min=0))
    loss = (sum(losses, start=torch.zeros(())) + rows.sum() * 0) / max(len(losses), 1)
    loss.backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


def batch(rows: int, columns: int, identities: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(identities, (rows,), generator=generator) - 2
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), labels


def check(embeddings: Tensor, labels: Tensor, backend: str, tolerance: float = 1e-10, **options: Any) -> None:
    options = {"margin": 0.3, "distance": "euclidean", "normalize": False, **options}
    expected_loss, expected_gradient = oracle(embeddings, labels, **options)
    rows = embeddings.detach().clone().requires_grad_()
    loss = batch_hard_loss(rows, labels, backend=backend, **options)
    loss.backward()
    assert loss.shape == () and loss.dtype == (
        torch.float64 if rows.dtype == torch.float64 else torch.float32
    )
    assert float((loss.detach() - expected_loss.detach()).abs()) <= tolerance * max(
        1, float(expected_loss.detach())
    )
    assert rows.grad is not None
    scale = max(float(expected_gradient.norm()), 1e-3)
    assert float((rows.grad - expected_gradient).norm()) <= tolerance * scale


@pytest.mark.parametrize("backend", BACKENDS)
def test_value_by_hand(backend: str) -> None:
    # On a line at 0, 3, 1, 7 with identities 0, 0, 1, 1: anchor 0: 3 - 1, anchor 3: 3 - 2, 1: 6 - 1, 7: 6 -
    # 4.
    rows = torch.tensor([[0.0], [3.0], [1.0], [7.0]], requires_grad=True)
    loss = batch_hard_loss(rows, torch.tensor([0, 0, 1, 1]), margin=0.3, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx((2.3 + 1.3 + 5.3 + 2.3) / 4)
    # d/dx per anchor, 4 times the mean: 0: (-1+1, 1, -1, 0); 3: (-1, 1-1, 1, 0); 1: (1, 0, -1-1, 1); 7: (0,
    # 1, -1, 1-1)
    assert rows.grad is not None and rows.grad.flatten().tolist() == pytest.approx([0, 0.5, -0.75, 0.25])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("margin", [0.3, "soft"])
@pytest.mark.parametrize("rows,columns,identities", [(2, 13, 1), (13, 2, 4), (13, 13, 13), (70, 257, 20)])
def test_against_loop(
    rows: int, columns: int, identities: int, margin: float | str, distance: str, backend: str
) -> None:
    embeddings, labels = batch(rows, columns, identities)
    check(embeddings, labels, backend, margin=margin, distance=distance)
    check(embeddings, labels, backend, margin=margin, distance=distance, normalize=True)
    check(embeddings.float(), labels.int(), backend, 2e-5, margin=margin, distance=distance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [0, 1, 2, 3], [5, 5, -1, 2]])
def test_few_or_no_valid_anchors(labels: list[int], backend: str) -> None:
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for distance in DISTANCES:
        check(embeddings, torch.tensor(labels, dtype=torch.int64), backend, distance=distance)
    if len(set(labels)) in (0, 1, len(labels)):
        rows = embeddings.requires_grad_()
        loss = batch_hard_loss(rows, torch.tensor(labels, dtype=torch.int64), margin="soft", backend=backend)
        loss.backward()
        assert loss.item() == 0 and rows.grad is not None and not rows.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_and_distance_zero(backend: str) -> None:
    # Exact arithmetic. Rows 0, 1, 5 are equal (distance 0 inside an identity and across), 2 and 3 tie for row
    # 0.
    rows = torch.tensor([[0.0, 0], [0, 0], [2, 0], [0, 2], [4, 0], [0, 0]], dtype=torch.float64)
    for labels in ([0, 0, 1, 1, 2, 2], [0, 1, 0, 0, 1, 2], [0, 1, 2, 2, 0, 1]):
        check(rows, torch.tensor(labels), backend)
        check(rows, torch.tensor(labels), backend, distance="squared_euclidean")
    equal = torch.ones(4, 3, requires_grad=True)
    batch_hard_loss(equal, torch.tensor([0, 0, 1, 1]), backend=backend).backward()
    assert equal.grad is not None and not equal.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_picked_distances_are_exact_where_the_expanded_form_is_not(backend: str) -> None:
    # Distances of 1e-3 between unit-length rows: |a|^2 + |b|^2 - 2 a.b in float32 is off by tens of per cent.
    generator = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(1, 512, generator=generator))
    rows = torch.cat([base, base + 1e-3 * F.normalize(torch.randn(1, 512, generator=generator)), -base])
    labels = torch.tensor([0, 0, 1])
    expected, gradient = oracle(rows, labels, 2.5, "euclidean", False)
    rows.requires_grad_()
    loss = batch_hard_loss(rows, labels, margin=2.5, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)
    assert rows.grad is not None and (rows.grad - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_row_normalised(backend: str) -> None:
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rows[1] = 0
    rows.requires_grad_()
    batch_hard_loss(
        rows, torch.tensor([0, 0, 1, 1, 2]), normalize=True, margin="soft", backend=backend
    ).backward()
    assert rows.grad is not None and rows.grad.isfinite().all() and not rows.grad[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(distance: Any, backend: str) -> None:
    embeddings, labels = batch(12, 5, 4, seed=5)
    for margin in (0.3, "soft"):
        assert torch.autograd.gradcheck(
            lambda x, m=margin: batch_hard_loss(x, labels, margin=m, distance=distance, backend=backend),
            embeddings.requires_grad_(),
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_pytorch_metric_learning(normalize: bool, backend: str) -> None:
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning import losses, miners, reducers

    embeddings, labels = batch(96, 32, 12, seed=2)
    labels = torch.arange(96) % 12  # every anchor valid: the library averages over the triplets it has
    rows, theirs = (embeddings.float().clone().requires_grad_() for _ in range(2))
    distance = distances.LpDistance(normalize_embeddings=normalize)
    loss_function = losses.TripletMarginLoss(margin=0.3, distance=distance, reducer=reducers.MeanReducer())
    their_loss = loss_function(theirs, labels, miners.BatchHardMiner(distance=distance)(theirs, labels))
    their_loss.backward()
    loss = batch_hard_loss(rows, labels, margin=0.3, normalize=normalize, backend=backend)
    loss.backward()
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rows.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_input_is_computed_in_float32(backend: str) -> None:
    embeddings, labels = batch(40, 16, 9)
    low = embeddings.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_loss(low, labels, backend=backend)
    loss.backward()
    expected, gradient = oracle(low, labels, 0.3, "euclidean", False)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(float(expected), rel=1e-5)
    assert low.grad is not None and low.grad.dtype == torch.bfloat16
    assert (low.grad.double() - gradient).norm() < 5e-3 * gradient.norm()


def test_blocks_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskreid_kernels.blocks.CACHE_BYTES", 1)
    monkeypatch.setattr("maskreid_kernels.blocks.FAST_ROWS", 7)
    embeddings, labels = batch(60, 13, 20)
    for distance in DISTANCES:
        check(embeddings, labels, "chunked", distance=distance)


def test_double_backward_is_refused() -> None:
    embeddings, labels = batch(9, 4, 3)
    embeddings.requires_grad_()
    loss = batch_hard_loss(embeddings, labels, backend="chunked")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, embeddings, create_graph=True)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"margin": "hard"}, "margin"),
        ({"margin": math.inf}, "margin"),
        ({"distance": "manhattan"}, "distance: expected one of"),
        ({"backend": "cuda"}, "not available"),
        ({"embeddings": torch.zeros(4, 0)}, "at least one column"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    arguments = {"embeddings": torch.zeros(4, 2), "labels": torch.zeros(4, dtype=torch.int64), **options}
    with pytest.raises(ValueError, match=message):
        batch_hard_loss(**arguments)
