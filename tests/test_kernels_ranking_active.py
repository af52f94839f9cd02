"""The chunked ranking loss with its list of pairs, beside the blocks that it replaces and beside the
reference."""

import pytest
import torch
from torch import Tensor

from maskreid_kernels import ranking_loss, ranking_loss_with_statistics, triangle
from maskreid_kernels.ranking import active, chunked
from maskreid_kernels.ranking.active import ActivePairs


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[ActivePairs]:
    """Every list that is made, in order."""
    made: list[ActivePairs] = []
    real = active.recorder

    def kept(*arguments: object) -> ActivePairs | None:
        found = real(*arguments)  # type: ignore[arg-type]
        made.extend([found] if found else [])
        return found

    monkeypatch.setattr(chunked, "recorder", kept)
    return made


def batch(rows: int, columns: int, images: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Identities that are far apart, so that a small margin leaves few negatives inside."""
    generator = torch.Generator().manual_seed(rows)
    labels = (torch.arange(rows) // images)[torch.randperm(rows, generator=generator)] * 7 - 3
    centres = torch.randn(rows // images + 1, columns, generator=generator, dtype=dtype)
    noise = torch.randn(rows, columns, generator=generator, dtype=dtype)
    return centres[(labels + 3) // 7] + 0.6 * noise, labels


def gradient(x: Tensor, y: Tensor, backend: str, **options: object) -> tuple[Tensor, Tensor]:
    rows = x.clone().requires_grad_()
    loss = ranking_loss(rows, y, backend=backend, **options)  # type: ignore[arg-type]
    (2.5 * loss).backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


@pytest.mark.parametrize("negatives", ["all", "violating"])
@pytest.mark.parametrize("rows,columns,images", [(257, 130, 4), (130, 257, 1), (97, 13, 3), (64, 20, 64)])
@pytest.mark.parametrize("margin,pull", [(0.15, 2.0), (0.5, 0.0), (-0.4, 1.0)])
def test_against_the_reference(
    rows: int, columns: int, images: int, margin: float, pull: float, negatives: str,
    lists: list[ActivePairs], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(active, "SPARSE_UP_TO", 1.0)
    monkeypatch.setattr(active, "MAX_WORDS", 1.0)
    monkeypatch.setattr(triangle, "WHOLE", 0)
    monkeypatch.setattr(triangle, "LOW", 16)
    monkeypatch.setattr(triangle, "CACHE_BYTES", 16 * 40 * 2 * 8)  # many blocks
    x, y = batch(rows, columns, images)
    options = {"margin": margin, "pull": pull, "negatives": negatives}
    expected = gradient(x, y, "reference", **options)
    found = gradient(x, y, "chunked", **options)
    assert len(lists) == 1 and lists[0].complete
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-12 * max(float(other.norm()), 0.1)
    again = gradient(x, y, "chunked", **options)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("limit", ["SPARSE_UP_TO", "MAX_PAIRS"])
def test_a_list_that_grows_too_long_is_given_up(
    limit: str, lists: list[ActivePairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = batch(257, 30, 4)
    expected = gradient(x, y, "reference", margin=0.5)
    monkeypatch.setattr(active, "SPARSE_UP_TO", 1.0)
    monkeypatch.setattr(active, "MAX_WORDS", 1.0)
    monkeypatch.setattr(active, limit, 0)
    loss, found = gradient(x, y, "chunked", margin=0.5)
    assert [made.complete for made in lists] == [False]
    assert (found - expected[1]).norm() <= 1e-12 * expected[1].norm() and abs(loss - expected[0]) < 1e-12


def test_shipped_limits_choose_by_the_share(lists: list[ActivePairs]) -> None:
    x, y = batch(512, 64, 4, torch.float32)
    for margin, listed in ((0.05, True), (1.5, False)):
        statistics = ranking_loss_with_statistics(x.requires_grad_(), y, margin=margin, backend="chunked")[1]
        assert (float(statistics.active_negative_fraction) < active.SPARSE_UP_TO) == listed
        assert lists.pop().complete == listed


def test_no_list_without_a_gradient_or_bounds(lists: list[ActivePairs]) -> None:
    x, y = batch(97, 13, 3)
    ranking_loss(x, y, backend="chunked")
    assert not lists.pop().complete
    ranking_loss(x.clone().requires_grad_(), y, backend="chunked", normalize=False)
    assert not lists


def test_a_nan_is_not_lost(lists: list[ActivePairs]) -> None:
    x, y = batch(97, 13, 3)
    x[5] = torch.nan
    loss, found = gradient(x, y, "chunked", margin=0.05)
    assert not lists and loss.isnan() and found.isnan().any()


def test_gradcheck(lists: list[ActivePairs], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "SPARSE_UP_TO", 1.0)
    monkeypatch.setattr(active, "MAX_WORDS", 1.0)
    x, y = batch(9, 4, 3)
    assert torch.autograd.gradcheck(
        lambda rows: ranking_loss(rows, y, backend="chunked", margin=0.3), x.requires_grad_(), atol=1e-7
    )
    assert lists and all(made.complete for made in lists)


@pytest.mark.parametrize("rows", [1024, 1025])
def test_a_second_backward(rows: int) -> None:
    """Up to 1,024 rows the backward reads the similarities of the forward; it must leave them as they are."""
    x, y = batch(rows, 8, 4)
    leaf = x.clone().requires_grad_()
    loss = ranking_loss(leaf, y, margin=0.5, backend="chunked")
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second)
    assert torch.allclose(first * 2.5, gradient(x, y, "reference", margin=0.5)[1], rtol=0, atol=1e-12)


def test_a_sample_of_the_rows_is_enough_to_give_up() -> None:
    generator = torch.Generator().manual_seed(0)
    S, unwritten = torch.rand(33, 40, generator=generator), torch.full((33, 40), torch.nan)
    low, high = torch.full((33,), 0.3), torch.full((40,), 0.9)
    finder = active.Finder(S.numel())
    assert finder.places(S, low, high, unwritten) is None and unwritten.isnan().all()
    found = finder.places(S, low + 0.69, high + 0.09, torch.empty_like(S))
    assert found is not None and found.tolist() == (S.flatten() > 0.99).nonzero().flatten().tolist()
