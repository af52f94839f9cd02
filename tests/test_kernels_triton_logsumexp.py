"""The Triton backend of the log-sum-exp losses, in Triton's interpreter where there is no GPU.

Every test runs with uninitialised memory filled with NaN, and against the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import kernel_checks
import maskreid_kernels as kernels
from gloo import run_ranks
from maskreid_kernels import (
    all_pairs_loss,
    circle_loss,
    n_pair_loss,
    supervised_contrastive_loss,
    triton_tiles,
)
from maskreid_kernels.logsumexp import triton, triton_bands

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSSES: dict[str, Callable[..., Tensor]] = {
    "n_pair": lambda x, y, **options: n_pair_loss(x, y, scale=7.0, **options),
    "all_pairs": lambda x, y, **options: all_pairs_loss(x, y, scale=3.0, margin=0.2, **options),
    "circle": lambda x, y, **options: circle_loss(x, y, **options),
    "supervised_contrastive": lambda x, y, **options: supervised_contrastive_loss(x, y, **options),
}


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def value_and_gradient(name: str, x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    rows = x.detach().clone().requires_grad_()
    loss = LOSSES[name](rows, y, **options)
    loss.backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


def check(name: str, x: Tensor, y: Tensor, tolerance: float, **options: Any) -> None:
    x, y = x.to(DEVICE), y.to(DEVICE)
    own = value_and_gradient(name, x, y, backend="triton", **options)
    assert own[0].dtype == x.dtype and own[1].dtype == x.dtype

    def reference() -> tuple[Tensor, Tensor]:
        return value_and_gradient(name, x.double(), y, backend="reference", **options)

    kernel_checks.near(own, reference, value=tolerance, gradient=tolerance, least=0.1)


def batch(rows: int, columns: int, identities: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(identities, (rows,), generator=generator) * 5 - 11
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows,columns,identities", [(1, 1, 1), (13, 1, 4), (13, 13, 3), (130, 70, 90)])
def test_against_the_reference(rows: int, columns: int, identities: int, name: str) -> None:
    x, y = batch(rows, columns, identities)
    check(name, x, y, 1e-11)
    if columns > 1:  # one column, normalised, has no gradient but rounding
        check(name, x.float(), y.int(), 1e-4)
    check(name, x / 3, y, 1e-11, normalize=False)


@pytest.mark.parametrize("name", ["circle", "supervised_contrastive"])
def test_ragged_tiles(name: str) -> None:
    check(name, *batch(257, 130, 90), 1e-11)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [[], [3, 3, 3], [0, 1, 2, 3], [5, 5, -1, 2]])
def test_few_or_no_valid_anchors(labels: list[int], name: str) -> None:
    x, y = torch.randn(len(labels), 3, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64)
    check(name, x, y, 1e-11)
    if len(set(labels)) != 3:
        loss, gradient = value_and_gradient(name, x.to(DEVICE), y.to(DEVICE), backend="triton")
        assert float(loss) == 0 and not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_duplicate_and_identical_rows(name: str) -> None:
    x, y = batch(12, 4, 3)
    x[5], x[2] = x[0], x[0]
    check(name, x, y, 1e-11)
    check(name, torch.ones_like(x), y, 1e-11)


@pytest.mark.parametrize("name", ["n_pair", "supervised_contrastive", "all_pairs"])
def test_long_rows(name: str) -> None:
    """Exponents of millions: float32 keeps a difference of theirs, but not the log of a share or of a sum
    beside one.

    Whole numbers, so that similarities are exact, whatever the order of the sum: else their rounding is the
    exponent's.
    """
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(64) // 4).to(DEVICE)
    for largest in (50, 300, 700):
        x = torch.randint(-largest, largest + 1, (64, 32), generator=generator).float().to(DEVICE)
        options = {"normalize": False, **({"scale": 1.0} if name != "supervised_contrastive" else {})}
        loss = getattr(kernels, f"{name}_loss")
        ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        value = loss(ours, y, backend="triton", precision="ieee", **options)
        expected = loss(exact, y, backend="reference", **options)
        value.backward()
        expected.backward()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        assert ours.grad is not None and exact.grad is not None
        assert float((ours.grad - exact.grad).norm()) <= 1e-5 * float(exact.grad.norm()) + 1e-9


def test_large_scales_and_nan() -> None:
    x, y = batch(40, 5, 6)
    for loss in (
        lambda rows, backend: circle_loss(rows, y.to(DEVICE), gamma=3000.0, backend=backend),
        lambda rows, backend: supervised_contrastive_loss(
            rows, y.to(DEVICE), temperature=0.002, backend=backend
        ),
    ):
        ours, reference = (x.to(DEVICE).clone().requires_grad_() for _ in range(2))
        value = loss(ours, "triton")
        value.backward()
        expected = loss(reference, "reference")
        expected.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-8, atol=1e-8)
    x[3, 2] = torch.nan
    for name in LOSSES:
        assert LOSSES[name](x.float().to(DEVICE), y.to(DEVICE), backend="triton").isnan()


@pytest.mark.parametrize("name", ["n_pair", "supervised_contrastive"])
def test_gradcheck(name: str) -> None:
    x, y = batch(7, 3, 2)
    x, y = x.to(DEVICE).requires_grad_(), y.to(DEVICE)
    assert torch.autograd.gradcheck(lambda rows: LOSSES[name](rows, y, backend="triton"), x)


@pytest.mark.parametrize("name", LOSSES)
def test_bands_panels_and_chunks_cover_every_pair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_bands, "PANEL_COLUMNS", 50)
    monkeypatch.setattr(triton, "WORKSPACE_BYTES", 60_000)  # bands of some forty anchors
    monkeypatch.setattr(triton_tiles, "processors", lambda device: 7)
    check(name, *batch(130, 13, 30), 1e-11)


@pytest.mark.parametrize("name", ["n_pair", "circle"])
def test_two_runs_give_the_same_bits(name: str) -> None:
    x, y = batch(90, 20, 12)
    first, second = (
        value_and_gradient(name, x.float().to(DEVICE), y.to(DEVICE), backend="triton") for _ in range(2)
    )
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_refusals() -> None:
    x, y = batch(4, 2, 2)
    with pytest.raises(ValueError, match="precision 'fp8': known are 'auto', 'bf16'"):
        n_pair_loss(x, y, backend="triton", precision="fp8")
    with pytest.raises(ValueError, match="precision 'tf32' is an option of backend"):
        n_pair_loss(x, y, backend="chunked", precision="tf32")
    with pytest.raises(RuntimeError, match="no second derivative"):
        rows = x.to(DEVICE).requires_grad_()
        torch.autograd.grad(n_pair_loss(rows, y.to(DEVICE), backend="triton"), rows, create_graph=True)


def run_rank(rank: int, world: int) -> None:
    x, y = batch(46, 13, 20)
    for name, split in (("n_pair", (17, 29)), ("circle", (46, 0)), ("supervised_contrastive", (23, 23))):
        expected, gradient = value_and_gradient(name, x, y, backend="reference")
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        loss, rows = value_and_gradient(name, x[own], y[own], backend="triton", group=dist.group.WORLD)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(rows / world, gradient[own], rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(DEVICE == "cuda", reason="gloo ranks share no GPU")
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(run_rank, 2, tmp_path)
