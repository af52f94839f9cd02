"""Candidates that are not the batch (`reference=`) over ranks: two ranks are one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import maskreid_kernels as kernels
from gloo import run_ranks
from reference_rows import BACKENDS, CASES, PAIR_LOSSES, SITUATIONS, labels_of, rows_of, small_blocks, step

# Rows of the two ranks: (anchors, references).
SPLITS = [((5, 8), (9, 12)), ((13, 0), (0, 21)), ((4, 9), (21, 0)), ((6, 7), (0, 0)), ((0, 0), (9, 12))]


def check_rows(
    name: str, options: dict[str, Any], backend: str, split: Any, learning: tuple[bool, bool]
) -> None:
    """In float64, where nothing hides a wrong sum, and in float32; both beside one process in float64."""
    for dtype in (torch.float64, torch.float32):
        check_rows_in(dtype, name, options, backend, split, learning)


def bound_of(dtype: torch.dtype, name: str, options: dict[str, Any]) -> float:
    """Of a gradient's error. Circle's exponent is gamma (S^2 - m^2): one rounding of a similarity near 1,
    which every product has, changes a pair's weight by 2 gamma eps, in one process as over ranks."""
    eps = torch.finfo(dtype).eps
    return max(8, 2 * options["gamma"] if name == "circle" else 0) * eps


def check_rows_in(
    dtype: torch.dtype,
    name: str,
    options: dict[str, Any],
    backend: str,
    split: Any,
    learning: tuple[bool, bool],
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    count, candidates = (sum(part) for part in split)
    exact_x, exact_r = rows_of(count, 40).float().double(), rows_of(candidates, 41).float().double()
    x, r = exact_x.to(dtype), exact_r.to(dtype)
    y, z = labels_of(count, 4, 42), labels_of(candidates, 4, 43)
    own, own_r = (slice(sum(part[:rank]), sum(part[: rank + 1])) for part in split)
    expected, of_x, of_r = step(name, exact_x, y, exact_r, z, **options)  # one process, everything
    assert of_x is not None and of_r is not None
    rows, references = x[own].clone().requires_grad_(), r[own_r].clone().requires_grad_(learning[rank])
    call = {"backend": backend, "group": dist.group.WORLD, **options}
    value = kernels.LOSSES[name](rows, y[own], reference=(references, z[own_r]), **call)
    value.backward()
    where = f"{name} {options} {backend} {split} rank {rank} {dtype}"
    bound = bound_of(dtype, name, options)
    assert abs(float(value.detach()) - float(expected)) <= bound * max(1.0, float(expected)), where
    values = [torch.zeros((), dtype=dtype) for _ in range(world)]
    dist.all_gather(values, value.detach())
    assert all(torch.equal(one, values[0]) for one in values), f"{where}: ranks differ in value"
    # Compared as one vector over all ranks: a share that is nearly zero has no relative error of its own.
    for leaf, right, mine, wanted in ((rows, of_x, own, True), (references, of_r, own_r, learning[rank])):
        assert (leaf.grad is not None) == wanted, where
        error = torch.zeros_like(right)
        if leaf.grad is not None:
            error[mine] = leaf.grad.double() / world - right[mine]
        dist.all_reduce(error)
        assert error.norm() <= bound * right.norm().clamp(min=1e-6), where


def raised_by(loss: str, reference: object, **options: Any) -> str:
    x, y = rows_of(6, 50), torch.arange(6) % 3
    with pytest.raises(ValueError) as raised:
        kernels.LOSSES[loss](x, y, reference=reference, group=dist.group.WORLD, **options)
    line = str(raised.value)
    lines: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    assert lines == [line] * len(lines)
    return line


def check_refusals(rank: int, world: int) -> None:
    last = rank == world - 1
    me = f"rank {world - 1} of the group"
    fine = (rows_of(5, 51), torch.arange(5))
    for loss in PAIR_LOSSES:
        line = raised_by(loss, (fine[0], fine[1][:4]) if last else fine)
        assert line == f"{me}: reference[1]: 4 entries for 5 rows of reference[0]; pass one per row"
        assert raised_by(loss, fine[0] if last else fine).startswith(f"{me}: reference: expected a pair")
        line = raised_by(loss, fine, backend="dense" if last else "chunked")
        assert line == f"{me}: backend 'dense' takes no reference=; use backend=\"chunked\""
        line = raised_by(loss, None if last else fine)
        assert "the ranks' options differ" in line and "reference=None" in line and me in line
        line = raised_by(loss, (fine[0].float(), fine[1]) if last else fine)
        assert "reference='rows of torch.float32'" in line and me in line
    temperature = torch.tensor(0.1, requires_grad=True)
    line = raised_by("supervised_contrastive", 7 if last else fine, temperature=temperature)
    assert line.startswith(f"{me}: reference: expected a pair (rows, labels), got int")


def check_no_anchors_travel(rank: int, world: int) -> None:
    """Anchors' rows are exchanged only where some rank's references wait for a gradient."""
    x, y, r, z = rows_of(7, 52), torch.arange(7) % 3, rows_of(5, 53), torch.arange(5) % 3
    for name in PAIR_LOSSES:
        numbers = []
        for learning in (False, True):
            sent = 0
            gather = dist.all_gather_into_tensor

            def counting(out: Tensor, own: Tensor, gather: Any = gather, **words: Any) -> Any:
                nonlocal sent
                sent += own.numel()
                return gather(out, own, **words)

            dist.all_gather_into_tensor = counting  # type: ignore[assignment]
            try:
                references = r.clone().requires_grad_(learning and rank == 0)
                rows = x.clone().requires_grad_()
                loss = kernels.LOSSES[name](rows, y, reference=(references, z), group=dist.group.WORLD)
                in_forward = sent
                loss.backward()
                assert sent == in_forward, "a collective in the backward"
            finally:
                dist.all_gather_into_tensor = gather
            numbers.append(sent)
        assert numbers[1] - numbers[0] == x.numel(), name


def run_rank(rank: int, world: int) -> None:
    for name, options in CASES:
        for backend in BACKENDS:
            for split in SPLITS:
                check_rows(name, options, backend, split, (True, True))
            check_rows(name, options, backend, SPLITS[0], (False, False))
            check_rows(name, options, backend, SPLITS[0], (False, True))
        check_rows(
            name, {**options, "reduction": "sum", "ignore_index": 2}, "chunked", SPLITS[0], (True, True)
        )
    check_refusals(rank, world)
    check_no_anchors_travel(rank, world)
    check_learned(rank, world)
    check_compiled(rank, world)
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_blocks(monkeypatch)
        for name, options in CASES:
            check_rows(name, options, "chunked", SPLITS[0], (True, True))


def check_compiled(rank: int, world: int) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    own, own_r = (slice(0, 3), slice(0, 11)) if rank == 0 else (slice(3, 11), slice(11, 19))
    steps = []
    for loss in (kernels.n_pair_loss, torch.compile(kernels.n_pair_loss, backend="aot_eager")):
        rows, references = x[own].clone().requires_grad_(), r[own_r].clone().requires_grad_(rank == 0)
        loss(rows, y[own], reference=(references, z[own_r]), group=dist.group.WORLD).backward()
        steps.append((rows.grad, references.grad))
    torch.testing.assert_close(steps[1][0], steps[0][0])
    if rank == 0:
        torch.testing.assert_close(steps[1][1], steps[0][1])


def check_learned(rank: int, world: int) -> None:
    """A learned temperature's gradient, averaged over the ranks, is that of one process."""
    x, y, r, z = SITUATIONS["ragged"]
    own, own_r = (slice(0, 3), slice(0, 11)) if rank == 0 else (slice(3, 11), slice(11, 19))
    for backend in BACKENDS:
        alone, shared = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        call: dict[str, Any] = {"backend": backend, "temperature": alone}
        kernels.supervised_contrastive_loss(x, y, reference=(r, z), **call).backward()
        call |= {"temperature": shared, "group": dist.group.WORLD}
        kernels.supervised_contrastive_loss(x[own], y[own], reference=(r[own_r], z[own_r]), **call).backward()
        assert alone.grad is not None and shared.grad is not None
        dist.all_reduce(shared.grad)
        torch.testing.assert_close(shared.grad / world, alone.grad)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    run_ranks(run_rank, 2, tmp_path)
