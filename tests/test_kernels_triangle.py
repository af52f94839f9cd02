"""The blocks that hold every unordered pair once, and the chunked losses over many of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from gloo import run_ranks
from maskreid_kernels import (
    all_pairs_loss,
    batch_hard_loss,
    circle_loss,
    n_pair_loss,
    ranking_loss,
    supervised_contrastive_loss,
    triangle,
)
from maskreid_kernels.positives import find_positives
from maskreid_kernels.ranks import RankLayout
from products_over_ranks import counted

LOSSES: dict[str, Callable[..., Tensor]] = {
    "batch_hard": lambda x, y, **options: batch_hard_loss(x, y, margin=3.0, **options),
    "batch_hard_cosine": lambda x, y, **options: batch_hard_loss(x, y, distance="cosine", **options),
    "ranking": ranking_loss,
    "ranking_violating": lambda x, y, **options: ranking_loss(x, y, negatives="violating", **options),
    "ranking_all_inside": lambda x, y, **options: ranking_loss(x, y, margin=2.0, **options),
    "ranking_raw": lambda x, y, **options: ranking_loss(x, y, normalize=False, **options),
    "n_pair": n_pair_loss,
    "n_pair_raw": lambda x, y, **options: n_pair_loss(x, y, normalize=False, **options),
    "all_pairs": lambda x, y, **options: all_pairs_loss(x, y, scale=50.0, **options),
    "circle": circle_loss,
    "supervised_contrastive": supervised_contrastive_loss,
}
LABELS = {
    "shuffled": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(n)) // 4,
    "one wide": lambda n: torch.where(torch.arange(n) % 2 == 0, 0, torch.arange(n) // 6),
    "one": lambda n: torch.zeros(n, dtype=torch.long),
    "alone": lambda n: torch.arange(n),
}


def cut_small(monkeypatch: pytest.MonkeyPatch | None = None, itemsize: int = 8) -> None:
    """Blocks of 16 rows and up to 32 columns."""
    values = {"WHOLE": 0, "LOW": 16, "STRIPS": 1 << 30, "CACHE_BYTES": 16 * 40 * 2 * itemsize}
    for name, value in values.items():
        if monkeypatch is None:
            setattr(triangle, name, value)
        else:
            monkeypatch.setattr(triangle, name, value)


def value_and_gradient(name: str, x: Tensor, y: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    rows = x.clone().requires_grad_()
    loss = LOSSES[name](rows, y, backend=backend)
    (2.5 * loss).backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=4),
    st.integers(4, 40),
    st.integers(1, 3),
)
@example([0, 3, 1, 5], 1, 2)
def test_every_pair_once(rows: list[int], low: int, runs: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triangle, "WHOLE", 0)
        patch.setattr(triangle, "LOW", low)
        patch.setattr(triangle, "STRIPS", 1 << 30)
        patch.setattr(triangle, "CACHE_BYTES", low * low * runs * 16)
        total = sum(rows)
        x, positives = torch.zeros(total, 3, dtype=torch.float64), find_positives(torch.arange(total) // 3)
        shared, owned = torch.zeros(total, total), torch.zeros(total, total)
        for rank in range(len(rows)):
            blocks = triangle.Triangle(x, positives, RankLayout(None, rank, tuple(rows)))
            own = RankLayout(None, rank, tuple(rows)).own
            for table, found in ((shared, blocks.share()), (owned, blocks.own())):
                for block in found:
                    if block.rows_count:
                        table[block.rows, block.columns] += 1
                    if block.columns_count:
                        table[block.columns, block.rows] += 1
                    assert block.area <= low * low * runs
            assert not (owned[own] != 1).any()
        assert not (shared != 1).any() and not (owned != 1).any()


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("rows", [33, 130])
@pytest.mark.parametrize("name", LOSSES)
def test_many_blocks_equal_the_reference(
    name: str, rows: int, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    x = torch.randn(rows, 7, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    y = LABELS[labels](rows)
    expected, found = (value_and_gradient(name, x, y, backend) for backend in ("reference", "chunked"))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-12 * max(float(other.norm()), 0.1)
    again = value_and_gradient(name, x, y, "chunked")
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_of_equal_distances_the_lowest_row_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers, whose distances are exact: many are equal, within a block and over blocks."""
    cut_small(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (130, 4), generator=generator, dtype=torch.float64)
    y = torch.randint(0, 9, (130,), generator=generator)
    expected, found = (
        value_and_gradient("batch_hard", x, y, backend)[1] for backend in ("reference", "chunked")
    )
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_in_any_block_is_not_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch)
    for place in (0, 47, 129):
        x = torch.randn(130, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        x[place] = torch.nan
        y = torch.arange(130) // 4
        y[place] = 999  # alone: it is a candidate of others only
        assert value_and_gradient(name, x, y, "chunked")[0].isnan()


def test_half_of_the_similarities_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplications counted: of N^2 similarities the forward takes half, and what lies on the diagonal."""
    products: list[int] = []
    real = triangle.Triangle.similarities

    def counted(self: triangle.Triangle, block: triangle.Block, scale: float = 1) -> Tensor:
        products.append(block.area)
        return real(self, block, scale)

    monkeypatch.setattr(triangle.Triangle, "similarities", counted)
    x, y = torch.randn(8192, 2), torch.arange(8192) // 4
    for name, passes in (("ranking_all_inside", 2), ("circle", 2), ("supervised_contrastive", 2)):
        products.clear()
        value_and_gradient(name, x, y, "chunked")
        assert sum(products) == passes * (8192 * 8192 + 16 * 512 * 512) // 2
    # Identities that are far apart: no negative is inside the margin, and the backward needs no similarity.
    products.clear()
    value_and_gradient(
        "ranking", torch.eye(64)[torch.arange(8192) // 128], torch.arange(8192) // 128, "chunked"
    )
    assert sum(products) == (8192 * 8192 + 16 * 512 * 512) // 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_products_over_ranks(ranks: int) -> None:
    """N^2 / 2 in the forward, N^2 (1 - 1 / (2 W)) in the backward, and some on the diagonal; shared well."""
    found = counted(ranks)
    assert 0.5 < found.forward < 0.54 and found.most_forward < 1.2 * found.forward / ranks
    assert 0 < found.backward - (1 - 1 / (2 * ranks)) < 0.04
    assert found.gradient == 1


def check_over_ranks(rank: int, world: int) -> None:
    cut_small()
    split = {2: (70, 43), 3: (5, 0, 98)}[world]
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    x = torch.randn(sum(split), 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for spread in LABELS.values():
        y = spread(sum(split))
        for name, loss in LOSSES.items():
            expected, gradient = value_and_gradient(name, x, y, "reference")
            rows = x[own].clone().requires_grad_()
            found = loss(rows, y[own], backend="chunked", group=dist.group.WORLD)
            (2.5 * found).backward()
            assert rows.grad is not None
            assert abs(float(found) - float(expected)) <= 1e-12 * max(1, abs(float(expected))), name
            error = (rows.grad / world - gradient[own]).norm()
            assert error <= 1e-12 * max(float(gradient.norm()), 0.1), name


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_ranks_equal_one_process(world: int, tmp_path: Path) -> None:
    run_ranks(check_over_ranks, world, tmp_path)
