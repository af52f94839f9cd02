"""The ranking loss's Triton programs: on a GPU where there is one, else in Triton's interpreter (float32,
float64).

test_kernels_ranking.py holds this backend to the paper's formula; here are the paths that only it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import kernel_checks
from gloo import run_ranks
from maskreid_kernels import ranking_loss
from maskreid_kernels.ranking import triton_backward, triton_forward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch(
    rows: int, columns: int, identities: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    labels = torch.randint(identities, (rows,), generator=generator) - 3
    centres = torch.randn(identities, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return (centres[labels + 3] + noise).to(dtype).to(DEVICE), labels.to(DEVICE)


def value_and_gradient(x: Tensor, y: Tensor, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    rows = x.detach().clone().requires_grad_()
    loss = ranking_loss(rows, y, backend=backend, **options)
    loss.backward()
    assert rows.grad is not None and rows.grad.dtype == x.dtype
    return loss.detach(), rows.grad


def compare(x: Tensor, y: Tensor, tolerance: float, **options: Any) -> None:
    """Against the reference in float64; the gradient's error relative to its own length."""
    own = value_and_gradient(x, y, "triton", **options)

    def reference() -> tuple[Tensor, Tensor]:
        return value_and_gradient(x.double(), y, "reference", **options)

    kernel_checks.near(own, reference, value=tolerance, gradient=tolerance, least=0.05)


@pytest.fixture(params=["marks", "dense", "mixed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways through the backward: marked pairs, dense bands, and each anchor by whether its marks
    fitted."""
    if request.param == "dense":
        no_marks(monkeypatch)
        monkeypatch.setattr(triton_backward, "BAND_BYTES", 1)  # several bands of columns
        monkeypatch.setattr(triton_backward, "GRADIENT_BYTES", 1 << 14)  # several bands of anchors
    if request.param == "mixed":
        monkeypatch.setattr(triton_forward, "MARK_BYTES", 1)  # one mark per anchor and chunk
    return str(request.param)


def no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_forward, "FEW_MARKS", -1)
    monkeypatch.setattr(triton_forward, "SPARSE_UP_TO", -1.0)


@pytest.mark.parametrize(
    "rows,columns,identities,dtype,tolerance",
    [(35, 13, 9, torch.float64, 1e-12), (100, 65, 30, torch.float32, 2e-5)],
)
def test_every_path(
    rows: int, columns: int, identities: int, dtype: torch.dtype, tolerance: float, path: str
) -> None:
    x, y = batch(rows, columns, identities, dtype)
    compare(x, y, tolerance, margin=-0.2)
    if rows < 100:
        compare(x / 3, y, tolerance, normalize=False, negatives="violating", margin=-0.5)


def test_the_paths_are_taken(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = {"marks": 0, "dense": 0}
    real = triton_backward._finish_

    def counted(*arguments: Any) -> None:
        listed_b, from_negatives = arguments[4:]
        anchors["dense" if isinstance(from_negatives, Tensor) else "marks"] += (
            100 if listed_b is None else len(listed_b)
        )
        real(*arguments)

    monkeypatch.setattr(triton_backward, "_finish_", counted)
    value_and_gradient(*batch(100, 13, 9), "triton", margin=-0.6)
    assert sum(anchors.values()) == 100
    assert (anchors["marks"] > 0, anchors["dense"] > 0) == (path != "dense", path != "marks")


def test_marks_at_the_ends_of_their_bits() -> None:
    """Every negative marked in both roles: bits 0 and 15 of a group, the sign bit, a last group of one
    place."""
    x, y = batch(17, 2, 6)
    compare(x, y, 1e-11, margin=2.5)


@pytest.mark.parametrize("columns", [1, 13, 130, 257])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_ragged_shapes(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if columns != 13:
        no_marks(monkeypatch)  # the interpreter takes its time over marks
    x, y = batch(rows, columns, max(rows // 3, 1))
    compare(x, y, 1e-11)


def test_special_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch(20, 6, 5)
    for labels in (torch.zeros_like(y), torch.arange(20, device=DEVICE), y.int()):
        compare(x, labels, 1e-11, margin=0.0)
    no_marks(monkeypatch)
    compare(x, (y % 2).to(torch.int8), 1e-11)
    compare(x[:1].expand(20, 6).contiguous(), y, 1e-11)  # all rows identical
    doubled = torch.cat([x[:10], x[:10]])
    compare(doubled, y, 1e-11)
    compare(doubled, torch.cat([y[:10], y[:10]]), 1e-11)
    with_zero = x.clone()
    with_zero[3] = 0
    compare(with_zero, y, 1e-11)
    compare(x, y, 1e-11, margin=20.0)  # beyond the margin up to which exp needs no running maximum
    compare(30 * x, y, 1e-11, normalize=False)


def test_a_broken_row_is_not_hidden() -> None:
    x, y = batch(40, 6, 8)
    x[5, 2] = torch.nan
    assert torch.isnan(ranking_loss(x, y, backend="triton"))


def test_gradcheck() -> None:
    x, y = batch(7, 2, 3)
    rows = x.requires_grad_()
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda r, normalize=normalize: ranking_loss(
                r, y, backend="triton", margin=0.1, normalize=normalize
            ),
            (rows,),
            fast_mode=True,
        )


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty filled with NaN (integers: their largest value): what is read must have been written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


def test_reads_only_what_it_wrote_and_repeats_itself(poisoned: None, path: str) -> None:
    x, y = batch(35, 13, 9, torch.float32)
    first = value_and_gradient(x, y, "triton", margin=-0.3)
    second = value_and_gradient(x, y, "triton", margin=-0.3)
    assert torch.isfinite(first[1]).all()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def run_rank(rank: int, world: int, split: tuple[int, ...]) -> None:
    x, y = batch(sum(split), 13, 11)
    whole = value_and_gradient(x, y, "reference")
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    for few in (triton_forward.FEW_MARKS, -1):
        triton_forward.FEW_MARKS, triton_forward.SPARSE_UP_TO = few, -1.0
        loss, gradient = value_and_gradient(x[own], y[own], "triton", group=dist.group.WORLD)
        assert abs(float(loss) - float(whole[0])) <= 1e-12 * float(whole[0])
        error = (gradient / world - whole[1][own]).norm()
        assert error <= 1e-12 * whole[1].norm(), f"rank {rank} of {split}, few = {few}"


@pytest.mark.skipif(DEVICE == "cuda", reason="ranks of one GPU; NCCL wants one each")
@pytest.mark.parametrize("split", [(20, 0, 15)])
def test_ranks(split: tuple[int, ...], tmp_path: Path) -> None:
    run_ranks(run_rank, len(split), tmp_path, split)


def test_refusals() -> None:
    x, y = batch(4, 3, 2, torch.float32)
    with pytest.raises(ValueError, match="precision 'fp8'"):
        ranking_loss(x, y, backend="triton", precision="fp8")
    with pytest.raises(ValueError, match="option of backend"):
        ranking_loss(x, y, backend="dense", precision="tf32")
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
            ranking_loss(x, y, backend="triton", precision="bf16")
        with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
            ranking_loss(x.bfloat16(), y, backend="triton")
    rows = x.requires_grad_()
    (gradient,) = torch.autograd.grad(ranking_loss(rows, y, backend="triton"), rows, create_graph=False)
    assert torch.isfinite(gradient).all()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(ranking_loss(rows, y, backend="triton"), rows, create_graph=True)
