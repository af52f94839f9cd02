"""The ranking loss against Eq. 5 written as a loop over anchors in float64."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskreid_kernels import RankingStatistics, ranking_loss, ranking_loss_with_statistics

BACKENDS = ["reference", "dense", "chunked"]
# Programs are slow in the interpreter; test_kernels_triton_ranking.py has the rest.
WITH_TRITON = [*BACKENDS, "triton"]


def oracle(
    embeddings: Tensor, labels: Tensor, margin: float, pull: float, negatives: str, normalize: bool
) -> dict[str, Any]:
    """Loss, gradient and statistics, one anchor at a time."""
    rows = embeddings.detach().double().requires_grad_()
    x = rows / rows.norm(dim=1, keepdim=True) if normalize else rows
    names = labels.tolist()
    losses, floors, pairs, active = [rows.sum() * 0], [], 0, 0
    for k in range(len(names)):
        others = [i for i in range(len(names)) if i != k and names[i] == names[k]]
        strangers = [j for j in range(len(names)) if names[j] != names[k]]
        if not others or not strangers:
            continue
        S = x @ x[k]
        least = min(others, key=lambda i: float(S[i]))  # first of equals
        hinges = torch.clamp(S[strangers] - S[least] + margin, min=0)
        violators = hinges[hinges > 0]
        push = torch.log(1 + torch.exp(hinges if negatives == "all" else violators).sum())
        losses.append(push + pull / (2 * len(others)) * sum((S[i] - 1) ** 2 for i in others))
        floors.append(math.log(1 + len(strangers)) if negatives == "all" else 0.0)
        pairs, active = pairs + len(strangers), active + len(violators)
    loss = torch.stack(losses).sum() / max(len(floors), 1)
    loss.backward()
    floor = sum(floors) / max(len(floors), 1)
    return {
        "loss": loss.detach(),
        "gradient": rows.grad,
        "floor": floor,
        "fraction": active / max(pairs, 1),
        "valid": len(floors),
    }


def batch(rows: int, columns: int, identities: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(identities, (rows,), generator=generator)
    # Identities near a centre of their own: some negatives inside the margin, some outside.
    centres = torch.randn(identities, columns, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(rows, columns, generator=generator, dtype=torch.float64), labels


def check(
    embeddings: Tensor, labels: Tensor, backend: str, tolerance: float = 1e-10, **options: Any
) -> RankingStatistics:
    options = {"margin": 0.15, "pull": 2.0, "negatives": "all", "normalize": True, **options}
    expected = oracle(embeddings, labels, **options)
    rows = embeddings.detach().clone().requires_grad_()
    loss, statistics = ranking_loss_with_statistics(rows, labels, backend=backend, **options)
    loss.backward()
    assert loss.shape == () and rows.grad is not None
    assert float((loss - expected["loss"]).abs()) <= tolerance * max(1, float(expected["loss"]))
    scale = max(float(expected["gradient"].norm()), 0.1)
    assert float((rows.grad - expected["gradient"]).norm()) <= tolerance * scale
    assert float(statistics.floor) == pytest.approx(expected["floor"], abs=1e-6)
    assert float(statistics.active_negative_fraction) == pytest.approx(expected["fraction"], abs=1e-6)
    assert int(statistics.valid_anchors) == expected["valid"]
    return statistics


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_value_by_hand(backend: str) -> None:
    # Unit rows a = (1, 0), b = (0.6, 0.8), c = (0, 1) with identities a, b | c: S_ab = .6, S_ac = 0, S_bc =
    # .8. a: hinge of c = [0 - .6 + .15]_+ = 0; b: [.8 - .6 + .15]_+ = .35; c has no positive. pull: (.6 -
    # 1)^2 = .16.
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([4, 4, -9])
    a, b = math.log(1 + 1) + 0.16, math.log(1 + math.exp(0.35)) + 0.16
    loss, statistics = ranking_loss_with_statistics(rows, labels, backend=backend)
    assert float(loss) == pytest.approx((a + b) / 2, abs=1e-12)
    assert float(statistics.floor) == pytest.approx(math.log(2), abs=1e-12)
    assert float(statistics.active_negative_fraction) == 0.5 and int(statistics.valid_anchors) == 2
    violating = ranking_loss(rows, labels, negatives="violating", backend=backend)
    assert float(violating) == pytest.approx((math.log(1) + 0.16 + b) / 2, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("negatives", ["all", "violating"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "rows,columns,identities", [(2, 13, 2), (13, 1, 4), (13, 13, 3), (130, 257, 30), (60, 8, 50)]
)
def test_against_loop(
    rows: int, columns: int, identities: int, negatives: str, normalize: bool, backend: str
) -> None:
    embeddings, labels = batch(rows, columns, identities)
    check(embeddings, labels, backend, negatives=negatives, normalize=normalize)
    check(embeddings.float(), labels.int(), backend, 2e-5, negatives=negatives, normalize=normalize)


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_margin_and_pull(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton":  # the dense way: many marks take the interpreter long
        monkeypatch.setattr("maskreid_kernels.ranking.triton_forward.FEW_MARKS", -1)
    embeddings, labels = batch(20, 6, 5)
    for margin in (-0.2, 0.0, 0.5, 20.0):  # 20: beyond the margin up to which exp needs no running maximum
        for pull in (0.0, 5.0):
            check(embeddings, labels, backend, margin=margin, pull=pull)


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [0, 1, 2, 3], [5, 5, -1, 2]])
def test_few_or_no_valid_anchors(labels: list[int], backend: str) -> None:
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    statistics = check(embeddings, torch.tensor(labels, dtype=torch.int64), backend)
    if len(set(labels)) in (0, 1, len(labels)):
        rows = embeddings.clone().requires_grad_()
        loss = ranking_loss(rows, torch.tensor(labels, dtype=torch.int64), backend=backend)
        loss.backward()
        assert float(loss) == 0 and rows.grad is not None and not rows.grad.any()
        assert int(statistics.valid_anchors) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_take_the_lowest_row(backend: str) -> None:
    # Exact arithmetic: rows 1 and 3 are equal, rows 0 and 4 too, and all similarities are 0 or 1.
    rows = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1, 0, 2]]
    check(rows, torch.tensor([0, 0, 1, 0, 1, 1]), backend)
    check(rows, torch.tensor([0, 0, 1, 0, 1, 1]), backend, negatives="violating", normalize=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_and_zero_rows_give_finite_gradients(backend: str) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    rows = torch.ones(5, 4, requires_grad=True)
    ranking_loss(rows, labels, backend=backend).backward()
    assert rows.grad is not None and rows.grad.norm() < 1e-5  # equal rows: nothing to turn towards
    embeddings = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    embeddings[1] = 0
    rows = embeddings.requires_grad_()
    ranking_loss(rows, labels, backend=backend).backward()
    assert rows.grad is not None and rows.grad.isfinite().all() and not rows.grad[1].any() and rows.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend: str) -> None:
    embeddings = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    embeddings[3, 2] = torch.nan
    for negatives in ("all", "violating"):
        loss = ranking_loss(embeddings, torch.arange(8) // 2, pull=0, negatives=negatives, backend=backend)
        assert loss.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_similarities_do_not_overflow(backend: str) -> None:
    embeddings, labels = batch(12, 6, 3)
    embeddings *= 8  # gaps of some hundreds: exp overflows in float32, not in the loop's float64
    assert 90 < float(ranking_loss(embeddings, labels, normalize=False, pull=0, backend=backend)) < 600
    check(embeddings, labels, backend, normalize=False)
    check(embeddings.float(), labels, backend, 2e-5, normalize=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("negatives", ["all", "violating"])
def test_gradcheck(negatives: Literal["all", "violating"], backend: str) -> None:
    embeddings, labels = batch(11, 5, 4, seed=3)
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, n=normalize: ranking_loss(x, labels, negatives=negatives, normalize=n, backend=backend),
            embeddings.requires_grad_(),
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    embeddings, labels = batch(40, 16, 9)
    low = embeddings.to(dtype).requires_grad_()
    high = low.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ranking_loss(low, labels, backend=backend)
    loss.backward()
    ranking_loss(high, labels, backend="reference").backward()
    assert loss.dtype == torch.float32 and low.grad is not None and low.grad.dtype == dtype
    assert high.grad is not None and (low.grad.float() - high.grad).norm() < 5e-3 * high.grad.norm()


def test_blocks_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskreid_kernels.blocks.CACHE_BYTES", 1)
    monkeypatch.setattr("maskreid_kernels.blocks.FAST_ROWS", 7)
    embeddings, labels = batch(130, 13, 40)
    check(embeddings, labels, "chunked")


def test_upstream_gradient_and_double_backward() -> None:
    embeddings, labels = batch(9, 4, 3)
    plain, scaled = (embeddings.clone().requires_grad_() for _ in range(2))
    ranking_loss(plain, labels, backend="chunked").backward()
    (ranking_loss(scaled, labels, backend="chunked") * -3).backward()
    assert plain.grad is not None and scaled.grad is not None
    torch.testing.assert_close(scaled.grad, plain.grad * -3)
    loss = ranking_loss(plain, labels, backend="chunked")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, plain, create_graph=True)


class LargestTensor(TorchDispatchMode):
    """Records the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_chunked_never_holds_a_square_matrix() -> None:
    embeddings = torch.randn(6000, 4, requires_grad=True)
    with LargestTensor() as largest:
        ranking_loss(embeddings, torch.arange(6000) // 4, backend="chunked").backward()
    assert 0 < largest.elements <= 6000**2 / 16


@pytest.mark.parametrize(
    "options,message",
    [
        ({"embeddings": torch.zeros(4)}, "embeddings: expected a 2-d"),
        ({"embeddings": torch.zeros(4, 2, dtype=torch.int64)}, "embeddings: expected a 2-d float"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels: 3 entries for 4 rows"),
        ({"labels": torch.zeros(4)}, "labels: expected a 1-d integer"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, "labels: on meta"),
        ({"negatives": "some"}, "negatives"),
        ({"margin": math.nan}, "margin"),
        (
            {"backend": "cuda"},
            "'cuda' is not available; available: 'auto', 'reference', 'dense', 'chunked', 'triton'",
        ),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    arguments = {"embeddings": torch.zeros(4, 2), "labels": torch.zeros(4, dtype=torch.int64), **options}
    with pytest.raises(ValueError, match=message):
        ranking_loss(**arguments)
