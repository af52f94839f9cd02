"""The loss step over gloo ranks on this machine: times of a rank's share."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ..ranks import RankLayout, gather_rows, gather_rows_with_gradient
from . import eager
from .cases import Case, constants, make_case
from .figures import Quantiles
from .gloo import run_ranks
from .providers import OURS


def result_over_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returned on rank 0 of `world_size` gloo processes with one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        results = mp.get_context("spawn").SimpleQueue()
        run_ranks(_keep_first, world_size, Path(folder), results, function, arguments)
        return results.get()


def _keep_first(
    rank: int, world_size: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    found = function(*arguments)
    if rank == 0:
        results.put(found)
    dist.barrier()


def time_over_ranks(case: Case, seconds: float) -> dict[str, Quantiles]:
    """ms of forward and backward by provider; of each round the slowest rank's."""
    times: dict[str, list[float]] = result_over_ranks(case.ranks, _times, case, seconds)
    return {name: Quantiles.of(values) for name, values in times.items()}


def _times(case: Case, seconds: float) -> dict[str, list[float]]:
    """All ranks take part in every round."""
    data = make_case(case, torch.device("cpu"))
    layout, own = own_layout(case.rows)
    keywords = constants(case, data.margin)
    plain = getattr(eager, case.kernel)

    def ours(x_MD: Tensor, y_M: Tensor) -> Tensor:
        return OURS[case.kernel](x_MD, y_M, group=dist.group.WORLD, **keywords)

    def gathered(x_MD: Tensor, y_M: Tensor) -> Tensor:
        found: Tensor = plain(gather_rows_with_gradient(x_MD, layout), gather_rows(y_M, layout), **keywords)
        return found

    losses = {"maskreid auto": ours, "eager on gathered rows": gathered}
    times: dict[str, list[float]] = {name: [] for name in losses}
    end = time.perf_counter() + seconds
    for round_number in range(20):
        enough = torch.tensor([float(round_number >= 4 and time.perf_counter() > end)])
        dist.all_reduce(enough, op=dist.ReduceOp.MAX)  # the ranks' clocks differ: all stop in one round
        if enough:
            break
        for name, loss in losses.items():
            rows = data.x_ND[own].clone().requires_grad_()
            dist.barrier()
            start = time.perf_counter()
            loss(rows, data.y_N[own]).backward()
            elapsed_ms = torch.tensor([(time.perf_counter() - start) * 1e3], dtype=torch.float64)
            dist.all_reduce(elapsed_ms, op=dist.ReduceOp.MAX)
            if round_number:  # the first warms up
                times[name].append(float(elapsed_ms))
    return times


def own_layout(rows: int) -> tuple[RankLayout, slice]:
    """`rows` shared as equally as can be, and this rank's part of them."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    share = [rows // world_size + (r < rows % world_size) for r in range(world_size)]
    layout = RankLayout(dist.group.WORLD, rank, tuple(share))
    return layout, layout.own
