"""Every loss over 1 to 4 ranks against one process holding the whole batch: value and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gloo import run_ranks
from maskreid_kernels import (
    all_pairs_loss,
    batch_hard_loss,
    circle_loss,
    n_pair_loss,
    ranking_loss,
    ranking_loss_with_statistics,
    softmax_loss,
    supervised_contrastive_loss,
)

COLUMNS = 24
# Rows of ranks 0, 1, ... in turn; the second has an empty rank, the last no row at all.
SPLITS: dict[int, list[tuple[int, ...]]] = {
    1: [(40,), (0,)],
    2: [(20, 20), (33, 0), (1, 30), (0, 0)],
    3: [(9, 17, 14), (0, 25, 11), (0, 0, 0)],
    4: [(10, 10, 10, 10), (13, 0, 7, 21), (0, 0, 0, 30)],
}
# Labels of the global batch: identities spread over all ranks, whole identities together, shuffled at random.
SPREADS: dict[str, Callable[[int], Tensor]] = {
    "spread": lambda rows: torch.arange(rows) % 7 - 3,
    "together": lambda rows: torch.arange(rows) // 5,
    "shuffled": lambda rows: torch.randint(9, (rows,), generator=torch.Generator().manual_seed(rows)),
    "alone": lambda rows: torch.arange(rows),
}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ranking": lambda x, y, **options: ranking_loss(x, y, **options),
    "ranking_violating": lambda x, y, **options: ranking_loss(
        x, y, negatives="violating", margin=0.4, **options
    ),
    "ranking_raw": lambda x, y, **options: ranking_loss(x / 5, y, normalize=False, **options),
    "batch_hard": lambda x, y, **options: batch_hard_loss(x, y, **options),
    "batch_hard_soft": lambda x, y, **options: batch_hard_loss(
        x, y, margin="soft", distance="squared_euclidean", normalize=True, **options
    ),
    "batch_hard_cosine": lambda x, y, **options: batch_hard_loss(x, y, distance="cosine", **options),
    "n_pair": lambda x, y, **options: n_pair_loss(x, y, **options),
    "all_pairs": lambda x, y, **options: all_pairs_loss(x, y, scale=3.0, margin=0.1, **options),
    "circle": lambda x, y, **options: circle_loss(x, y, gamma=6.0, **options),
    "supervised_contrastive": lambda x, y, **options: supervised_contrastive_loss(
        x, y, temperature=0.3, **options
    ),
    "softmax": lambda x, y, **options: softmax_loss(x, y % COLUMNS, **options),
}


def backends_of(name: str) -> tuple[str, ...]:
    return ("reference", "chunked") if name == "softmax" else ("reference", "dense", "chunked")


def relative_error(own: Tensor, expected: Tensor) -> float:
    return float((own - expected).norm() / expected.norm().clamp(min=1e-6))


def check_rows(name: str, backend: str, x: Tensor, y: Tensor, split: tuple[int, ...]) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = x.clone().requires_grad_()
    expected = LOSSES[name](whole, y, backend="reference")  # group=None: one process, the whole batch
    expected.backward()
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    rows = x[own].clone().requires_grad_()
    loss = LOSSES[name](rows, y[own], backend=backend, group=dist.group.WORLD)
    loss.backward()
    where = f"{name} {backend} {split} rank {rank}"
    assert abs(float(loss) - float(expected)) <= 1e-6 * max(1.0, float(expected)), where
    values = [torch.zeros(()) for _ in range(world)]
    dist.all_gather(values, loss.detach())
    assert all(torch.equal(value, values[0]) for value in values), f"{where}: ranks differ in value"
    assert rows.grad is not None and whole.grad is not None
    # Compared as one vector over all ranks: a rank whose share is nearly zero has no relative error of its
    # own.
    error = torch.zeros_like(x)
    error[own] = rows.grad / world - whole.grad[own]
    dist.all_reduce(error)
    assert error.norm() <= 1e-6 * whole.grad.norm().clamp(min=1e-6), where


def check_parameters(name: str, backend: str, x: Tensor, y: Tensor, split: tuple[int, ...]) -> None:
    """A linear model whose parameter gradients are averaged over the ranks, as data parallelism does."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    model = torch.nn.Linear(COLUMNS, COLUMNS)
    LOSSES[name](model(x), y, backend="reference").backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    LOSSES[name](model(x[own]), y[own], backend=backend, group=dist.group.WORLD).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        if gradient.norm() > 1e-4:  # the bias of a loss of differences gets (nearly) nothing
            assert relative_error(parameter.grad / world, gradient) <= 1e-6, f"{name} {backend} {split}"


def check_statistics(x: Tensor, y: Tensor, split: tuple[int, ...]) -> None:
    rank = dist.get_rank()
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    _, expected = ranking_loss_with_statistics(x, y, backend="reference")
    for backend in ("reference", "dense", "chunked"):
        _, own_view = ranking_loss_with_statistics(x[own], y[own], backend=backend, group=dist.group.WORLD)
        assert int(own_view.valid_anchors) == int(expected.valid_anchors)
        torch.testing.assert_close(own_view.floor, expected.floor)
        torch.testing.assert_close(own_view.active_negative_fraction, expected.active_negative_fraction)


def check_refusals() -> None:
    """One rank's bad input is an error on every rank, so none waits for the others."""
    rank, world = dist.get_rank(), dist.get_world_size()
    labels, last = torch.tensor([0, 1, 1, 0]), rank == world - 1
    with pytest.raises(
        ValueError, match="labels: 4 entries for 3 rows" if last else f"rank {world - 1} of the group"
    ):
        ranking_loss(torch.zeros(3 if last else 4, 2), labels, group=dist.group.WORLD)
    if world > 1:
        with pytest.raises(ValueError, match="differ in width"):
            batch_hard_loss(torch.zeros(4, 2 if last else 5), labels, group=dist.group.WORLD)
        with pytest.raises(ValueError, match="differ in dtype"):
            softmax_loss(
                torch.zeros(4, 2).to(torch.float16 if last else None), labels, group=dist.group.WORLD
            )


def run_rank(rank: int, world: int) -> None:
    for split in SPLITS[world]:
        for spread_name, spread in SPREADS.items():
            if spread_name in ("together", "alone") and split is not SPLITS[world][0]:
                continue
            x = torch.randn(sum(split), COLUMNS, generator=torch.Generator().manual_seed(sum(split)))
            y = spread(len(x))
            check_statistics(x, y, split)
            for name in LOSSES:
                for backend in backends_of(name):
                    check_rows(name, backend, x, y, split)
                    if spread_name == "shuffled":
                        check_parameters(name, backend, x, y, split)
    check_refusals()


@pytest.mark.parametrize("world", sorted(SPLITS))
def test_ranks_equal_one_process(world: int, tmp_path: Path) -> None:
    run_ranks(run_rank, world, tmp_path)


def fail_on_the_last(rank: int, world: int) -> None:
    assert rank < world - 1, "what the last rank found"


def test_what_fails_on_one_rank_fails_here(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="what the last rank found"):
        run_ranks(fail_on_the_last, 2, tmp_path)
