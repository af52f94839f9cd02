"""The ranking loss's Triton programs: on a GPU where there is one, else in Triton's interpreter (float32, float64).

test_kernels_ranking.py holds this backend to the paper's formula; here are the paths that only it has.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from maskreid_kernels import ranking_loss
from maskreid_kernels.ranking import triton as ranking_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch(
    rows: int, columns: int, identities: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    labels = torch.randint(identities, (rows,), generator=generator) - 3
    centres = torch.randn(identities, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return (centres[labels + 3] + noise).to(dtype).to(DEVICE), labels.to(DEVICE)


def value_and_gradient(x: Tensor, y: Tensor, backend: str, **options) -> tuple[Tensor, Tensor]:
    rows = x.detach().clone().requires_grad_()
    loss = ranking_loss(rows, y, backend=backend, **options)
    loss.backward()
    assert rows.grad is not None and rows.grad.dtype == x.dtype
    return loss.detach(), rows.grad


def compare(x: Tensor, y: Tensor, tolerance: float, **options) -> None:
    """Against the reference in float64; the gradient's error relative to its own length."""
    loss, gradient = value_and_gradient(x, y, "triton", **options)
    expected, expected_gradient = value_and_gradient(x.double(), y, "reference", **options)
    assert abs(float(loss) - float(expected)) <= tolerance * max(1, abs(float(expected)))
    error = (gradient.double() - expected_gradient).norm()
    assert float(error) <= tolerance * max(float(expected_gradient.norm()), 0.05), options


@pytest.fixture(params=["pairs", "dense", "overflow"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three ways through the backward: recorded pairs, many pairs, pairs that did not fit their slots."""
    if request.param == "dense":
        monkeypatch.setattr(ranking_triton, "FEW_PAIRS", 0)
        monkeypatch.setattr(ranking_triton, "SPARSE_UP_TO", 0.0)
        monkeypatch.setattr(ranking_triton, "BAND_BYTES", 1)  # several bands of columns
        monkeypatch.setattr(ranking_triton, "GRADIENT_BYTES", 1 << 14)  # several bands of anchors
    if request.param == "overflow":
        monkeypatch.setattr(ranking_triton, "PAIR_BYTES", 1)
    return str(request.param)


@pytest.mark.parametrize("rows,columns,identities", [(35, 13, 9), (130, 65, 30)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_path(
    rows: int, columns: int, identities: int, dtype: torch.dtype, tolerance: float, path: str
) -> None:
    x, y = batch(rows, columns, identities, dtype)
    if rows < 100:
        compare(x, y, tolerance)
    compare(x / 3, y, tolerance, normalize=False, negatives="violating", margin=0.5)


def test_the_paths_are_taken(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_add_pairs", "_add_dense"):
        real = getattr(ranking_triton, name)
        monkeypatch.setattr(
            ranking_triton, name, lambda *args, name=name, real=real: (taken.append(name), real(*args))
        )
    value_and_gradient(*batch(35, 13, 9), "triton")
    assert set(taken) == {"_add_pairs" if path == "pairs" else "_add_dense"}


@pytest.mark.parametrize("columns", [1, 13, 130, 257])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_ragged_shapes(rows: int, columns: int) -> None:
    x, y = batch(rows, columns, max(rows // 3, 1))
    compare(x, y, 1e-11)


def test_special_batches() -> None:
    x, y = batch(20, 6, 5)
    for labels in (torch.zeros_like(y), torch.arange(20, device=DEVICE), y.int(), (y % 2).to(torch.int8)):
        compare(x, labels, 1e-11)
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
    loss, _ = value_and_gradient(x, y, "triton")
    assert torch.isnan(loss)


def test_gradcheck() -> None:
    x, y = batch(7, 2, 3)
    rows = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: ranking_loss(r, y, backend="triton", margin=0.5), (rows,))


@pytest.fixture
def poisoned():
    """torch.empty filled with NaN (integers: their largest value): what is read must have been written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def test_reads_only_what_it_wrote_and_repeats_itself(poisoned: None, path: str) -> None:
    x, y = batch(35, 13, 9, torch.float32)
    first = value_and_gradient(x, y, "triton")
    second = value_and_gradient(x, y, "triton")
    assert torch.isfinite(first[1]).all()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def run_rank(rank: int, rendezvous: str, split: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(split))
    try:
        x, y = batch(sum(split), 13, 11)
        whole = value_and_gradient(x, y, "reference")
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        for few in (1 << 16, 0):
            ranking_triton.FEW_PAIRS, ranking_triton.SPARSE_UP_TO = few, 0.0
            loss, gradient = value_and_gradient(x[own], y[own], "triton", group=dist.group.WORLD)
            assert abs(float(loss) - float(whole[0])) <= 1e-12 * float(whole[0])
            error = (gradient / len(split) - whole[1][own]).norm()
            assert error <= 1e-12 * whole[1].norm(), f"rank {rank} of {split}, few = {few}"
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(DEVICE == "cuda", reason="ranks of one GPU; NCCL wants one each")
@pytest.mark.parametrize("split", [(20, 21), (20, 0, 15)])
def test_ranks(split: tuple[int, ...], tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path / "rendezvous"), split), nprocs=len(split))


def test_refusals() -> None:
    x, y = batch(4, 3, 2, torch.float32)
    with pytest.raises(ValueError, match="precision 'fp8'"):
        ranking_loss(x, y, backend="triton", precision="fp8")
    with pytest.raises(ValueError, match="option of backend"):
        ranking_loss(x, y, backend="chunked", precision="tf32")
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
