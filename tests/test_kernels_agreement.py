"""What differs between ranks, or is wrong on one of them, is the same line on every rank: nobody waits, no
value differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import maskreid_kernels as kernels
from gloo import run_ranks


def raised_by(loss: str, **words: object) -> str:
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    arguments = {"group": dist.group.WORLD, **words}
    rows, labels = arguments.pop("rows", x), arguments.pop("labels", y)
    with pytest.raises(ValueError) as raised:  # compared below
        kernels.LOSSES[loss](rows, labels, **arguments)
    line = str(raised.value)
    lines: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    assert lines == [line] * len(lines)
    return line


def check_refusals(rank: int, world: int) -> None:
    last = rank == world - 1
    me = f"rank {world - 1} of the group"
    for loss in kernels.LOSSES:
        line = raised_by(loss, **({"rows": [[0.0, 1.0]]} if last else {}))
        assert line.startswith(f"{me}: ") and "expected a torch.Tensor, got list" in line, line
        line = raised_by(loss, backend="chunked" if last else "reference")
        assert (
            line
            == f"the ranks' options differ: {me} has backend='chunked', others backend='reference'; "
            + ("pass the same on every rank")
        )
        line = raised_by(loss, backend="fastest" if last else "auto")
        assert line.startswith(f"{me}: backend 'fastest' is not available"), line
    line = raised_by("ranking", margin=float("nan") if last else 0.1)
    assert line == f"{me}: margin: expected a finite number, got nan"
    line = raised_by("ranking", margin=0.2 if last else 0.1)
    assert f"{me} has margin=0.2, others margin=0.1" in line
    line = raised_by("circle" if last else "n_pair")
    assert "options differ" in line
    temperature = torch.tensor(0.2 if last else 0.1, requires_grad=True)
    assert f"{me} has learned=0.2" in raised_by("supervised_contrastive", temperature=temperature)
    line = raised_by("ranking", labels=torch.arange(5) if last else torch.arange(6))
    assert line.startswith(f"{me}: labels: 5 entries for 6 rows")


def check_learned(rank: int, world: int) -> None:
    """The gradient of a learned temperature, averaged over the ranks, is that of one process."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(12) % 4
    own = slice(rank * 12 // world, (rank + 1) * 12 // world)
    for backend in ("reference", "dense", "chunked"):
        alone, shared = (torch.tensor(0.3, requires_grad=True) for _ in range(2))
        kernels.supervised_contrastive_loss(x, y, temperature=alone, backend=backend).backward()
        kernels.supervised_contrastive_loss(
            x[own], y[own], temperature=shared, backend=backend, group=dist.group.WORLD
        ).backward()
        assert alone.grad is not None and shared.grad is not None
        dist.all_reduce(shared.grad)
        torch.testing.assert_close(shared.grad / world, alone.grad)


def run_rank(rank: int, world: int) -> None:
    check_refusals(rank, world)
    check_learned(rank, world)


def test_three_ranks_raise_one_line(tmp_path: Path) -> None:
    run_ranks(run_rank, 3, tmp_path)


def test_a_group_needs_an_initialised_process_group() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="not one of the group's ranks"):
        kernels.ranking_loss(x, y, group=dist.GroupMember.NON_GROUP_MEMBER)  # type: ignore[arg-type]
