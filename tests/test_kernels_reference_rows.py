"""Candidates that are not the batch (`reference=`): values, gradients and options against float64 loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import maskreid_kernels as kernels
from maskreid_kernels.modules import LossModule
from reference_rows import BACKENDS, CASES, PAIR_LOSSES, SITUATIONS, loop, rows_of, small_blocks, step

MODULES: dict[str, Callable[..., LossModule]] = {
    "ranking": kernels.RankingLoss,
    "batch_hard": kernels.BatchHardLoss,
    "n_pair": kernels.NPairLoss,
    "all_pairs": kernels.AllPairsLoss,
    "circle": kernels.CircleLoss,
    "supervised_contrastive": kernels.SupervisedContrastiveLoss,
}


@pytest.fixture(params=["one_tile", "many_tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with blocks of three anchors against five references, so that nothing fits into one."""
    if request.param == "many_tiles":
        small_blocks(monkeypatch)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_of_both_kinds_of_rows(
    backend: str, name: str, options: dict[str, Any], situation: str
) -> None:
    x, y, r, z = SITUATIONS[situation]
    if situation == "duplicates":
        options = {**options, "normalize": False}
    slow_x, slow_r = x.clone().requires_grad_(), r.clone().requires_grad_()
    values = loop(name, slow_x, y, (slow_r, z), **options)
    zero = (slow_x.sum() + slow_r.sum()) * 0
    for reduction in ("mean", "sum", "none"):
        slow_x.grad = slow_r.grad = None
        if reduction == "none":
            expected = torch.stack([values.get(k, zero) for k in range(len(x))]) if len(x) else zero.expand(0)
        else:
            total = zero + sum(values.values())
            expected = total / max(len(values), 1) if reduction == "mean" else total
        expected.sum().backward(retain_graph=True)
        found = step(name, x, y, r, z, backend=backend, reduction=reduction, **options)
        for own, slow in zip(found, (expected, slow_x.grad, slow_r.grad), strict=True):
            assert slow is not None
            torch.testing.assert_close(own, slow.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "circle"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_derivatives(backend: str, name: str, options: dict[str, Any]) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    x, r = x[:6].clone().requires_grad_(), r[:11].clone().requires_grad_()

    def loss(x: Tensor, r: Tensor, **more: Any) -> Tensor:
        return kernels.LOSSES[name](x, y[:6], reference=(r, z[:11]), backend=backend, **options, **more)

    assert torch.autograd.gradcheck(loss, (x, r))
    assert torch.autograd.gradcheck(lambda x, r: loss(x, r, reduction="none"), (x, r))
    if backend == "reference" and options.get("distance") != "euclidean":
        assert torch.autograd.gradgradcheck(loss, (x, r))
    if backend == "chunked":
        with pytest.raises(RuntimeError, match='no second derivative; use backend="reference"'):
            torch.autograd.grad(loss(x, r), (x, r), create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranking_statistics(backend: str) -> None:
    x, y, r, z = SITUATIONS["some_without_positives"]
    call: dict[str, Any] = {"margin": 0.3, "backend": backend, "reference": (r, z)}
    loss, found = kernels.ranking_loss_with_statistics(x, y, **call)
    torch.testing.assert_close(loss, kernels.ranking_loss(x, y, **call))
    u, v = F.normalize(x), F.normalize(r)
    anchors = [k for k in range(len(x)) if (z == y[k]).any()]
    inside, negatives = [], []
    for k in anchors:
        least = (v[z == y[k]] @ u[k]).min()
        inside.append(int(((v[z != y[k]] @ u[k]) - least + 0.3 > 0).sum()))
        negatives.append(int((z != y[k]).sum()))
    assert int(found.valid_anchors) == len(anchors) == 3
    assert float(found.active_negative_fraction) == pytest.approx(sum(inside) / sum(negatives))
    assert float(found.floor) == pytest.approx(sum(math.log(1 + n) for n in negatives) / len(anchors))


# Where the usual loss, or another, can be compared.


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_usual_loss_is_each_row_against_the_others(name: str) -> None:
    y = torch.arange(12) // 3
    rows, same = (rows_of(12, 20).requires_grad_() for _ in range(2))
    usual = kernels.LOSSES[name](rows, y, reduction="none")
    usual.mean().backward()
    for backend in BACKENDS:
        same.grad = None
        values = []
        for k in range(12):
            others = torch.arange(12) != k
            own = slice(k, k + 1)
            reference = (same[others], y[others])
            values.append(
                kernels.LOSSES[name](same[own], y[own], reference=reference, backend=backend).reshape(())
            )
        torch.stack(values).mean().backward()
        torch.testing.assert_close(torch.stack(values), usual)
        torch.testing.assert_close(same.grad, rows.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_and_text_is_the_cross_entropy_of_their_logits(backend: str) -> None:
    """CLIP's loss: row i of the one kind belongs to row i of the other. The temperature is learned."""
    images, texts = rows_of(9, 21), rows_of(9, 22)
    labels = torch.arange(9)
    steps = []
    for ours in (True, False):
        a, b = images.clone().requires_grad_(), texts.clone().requires_grad_()
        temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        if ours:
            call: dict[str, Any] = {"temperature": temperature, "backend": backend}
            loss = kernels.supervised_contrastive_loss(a, labels, reference=(b, labels), **call)
            loss = loss + kernels.supervised_contrastive_loss(b, labels, reference=(a, labels), **call)
        else:
            logits = F.normalize(a) @ F.normalize(b).t() / temperature
            loss = F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)
        loss.backward()
        steps.append((loss.detach(), a.grad, b.grad, temperature.grad))
    for found, expected in zip(*steps, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "key"), [("n_pair", "scale"), ("all_pairs", "scale"), ("supervised_contrastive", "temperature")]
)
def test_a_learned_scale(name: str, key: str, backend: str, normalize: bool) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    value = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(number: Any, rows: Tensor, references: Tensor) -> Tensor:
        call = {"backend": backend, "normalize": normalize, key: number}
        return kernels.LOSSES[name](rows, y, reference=(references, z), **call)

    learned, fixed = ([one.clone().requires_grad_() for one in (x, r)] for _ in range(2))
    found, expected = loss(value, *learned), loss(0.7, *fixed)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for own, other in zip(learned, fixed, strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    difference = (loss(0.7 + 1e-5, x, r) - loss(0.7 - 1e-5, x, r)) / 2e-5
    assert value.grad is not None and float(value.grad) == pytest.approx(float(difference), rel=1e-6)


# Options.


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_rows_of_both_kinds(backend: str, name: str, reduction: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    kept_x, kept_r = torch.arange(11) % 4 != 1, torch.arange(19) % 5 != 2
    marked_y, marked_z = y.masked_fill(~kept_x, -9), z.masked_fill(~kept_r, -9)
    call = {"backend": backend, "reduction": reduction}
    value, of_x, of_r = step(name, x, marked_y, r, marked_z, ignore_index=-9, **call)
    expected, of_kept_x, of_kept_r = step(name, x[kept_x], y[kept_x], r[kept_r], z[kept_r], **call)
    assert of_x is not None and of_r is not None
    assert not of_x[~kept_x].any() and not of_r[~kept_r].any()
    if reduction == "none":
        assert value.shape == (11,) and not value[~kept_x].any()
        value = value[kept_x]
    for found, right in zip(
        (value, of_x[kept_x], of_r[kept_r]), (expected, of_kept_x, of_kept_r), strict=True
    ):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_auto_is_chunked(name: str) -> None:
    situation = SITUATIONS["ragged"]
    for found, expected in zip(
        step(name, *situation), step(name, *situation, backend="chunked"), strict=True
    ):
        assert found is not None and expected is not None and torch.equal(found, expected)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_and_autocast(backend: str, name: str) -> None:
    """A bank may be kept in fewer bits than the batch. Each kind of rows has its gradient in its own
    dtype."""
    x, y, r, z = SITUATIONS["ragged"]
    exact = step(name, x.bfloat16().double(), y, r.bfloat16().double(), z, backend=backend)
    for dtypes in [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ]:
        rows, references = (one.bfloat16().to(dtype) for one, dtype in zip((x, r), dtypes, strict=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = step(name, rows, y, references, z, backend=backend)
        assert found[0].dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
        for own, right, dtype in zip(found, exact, (found[0].dtype, *dtypes), strict=True):
            assert own is not None and right is not None and own.dtype == dtype
            tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
            assert (own.double() - right).norm() <= tolerance * right.norm()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_modules(name: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    module = MODULES[name](reduction="sum")
    expected = kernels.LOSSES[name](x, y, reduction="sum", reference=(r, z))
    assert torch.equal(module(x, y, reference=(r, z)), expected)
    assert torch.equal(module(x, y), kernels.LOSSES[name](x, y, reduction="sum"))
    with pytest.raises(TypeError, match=f"reference is of the call: {MODULES[name].__name__}"):
        MODULES[name](reference=(r, z))


@pytest.mark.parametrize("name", ["n_pair", "all_pairs", "supervised_contrastive"])
def test_modules_that_learn(name: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    module = MODULES[name](learnable=True)
    module(x, y, reference=(r, z)).backward()
    (parameter,) = module.parameters()
    assert parameter.grad is not None and float(parameter.grad) != 0


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_torch_func_is_the_references(name: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]

    def loss(rows: Tensor, references: Tensor, backend: str = "reference") -> Tensor:
        return kernels.LOSSES[name](rows, y, reference=(references, z), backend=backend)

    _, of_x, of_r = step(name, x, y, r, z, backend="reference")
    for found, expected in zip(torch.func.grad(loss, (0, 1))(x, r), (of_x, of_r), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(
        RuntimeError, match=r'torch\.func: not by the chunked backend; use backend="reference"'
    ):
        torch.func.grad(lambda rows: loss(rows, r, "chunked"))(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_broken_row_is_not_hidden(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    x, y, r, z = SITUATIONS["ragged"]
    for place in range(0, 19, 3):
        broken = r.clone()
        broken[place, 2] = torch.nan
        values = kernels.LOSSES[name](x, y, reference=(broken, z), backend=backend, reduction="none")
        assert values.isnan().all()  # it is a candidate of every anchor


@pytest.mark.parametrize("name", ["n_pair", "all_pairs", "supervised_contrastive"])
def test_long_rows_in_float32(name: str) -> None:
    """Similarities of 1e8, beside which float32 does not hold the share that pulls an anchor."""
    x, r = (F.normalize(rows_of(count, seed, 32)) * 1e4 for count, seed in ((24, 60), (48, 61)))
    y, z = torch.arange(24) % 8, torch.arange(48) % 8
    exact = step(name, x, y, r, z, backend="reference", normalize=False)
    found = step(name, x.float(), y, r.float(), z, backend="chunked", normalize=False)
    for own, right in zip(found, exact, strict=True):
        assert own is not None and right is not None
        assert (own - right).norm() <= 1e-3 * right.norm()
