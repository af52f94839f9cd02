"""The loss step over gloo ranks on this machine: times of a rank's share, and exactness of the gradients."""

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from maskreid_dist.bench import eager
from maskreid_dist.bench.cases import Case, make_case
from maskreid_dist.bench.measure import Quantiles, relative_error
from maskreid_dist.bench.providers import OURS, constants
from maskreid_dist.distributed import leave_world
from maskreid_kernels.ranks import RankLayout, gather_rows, gather_rows_with_gradient


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returned on rank 0 of `world_size` gloo processes with one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        results = context.SimpleQueue()
        mp.spawn(  # type: ignore[attr-defined]  # torch does not declare what it exports
            _run_rank, (world_size, folder, results, function, arguments), nprocs=world_size
        )
        return results.get()


def _run_rank(
    rank: int,
    world_size: int,
    folder: str,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    meeting = Path(folder, "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    try:
        found = function(*arguments)
        if rank == 0:
            results.put(found)
        dist.barrier()
    finally:
        leave_world()


def time_over_ranks(case: Case, seconds: float) -> dict[str, Quantiles]:
    """ms of forward and backward by provider; of each round the slowest rank's."""
    times: dict[str, list[float]] = run_ranks(case.ranks, _times, case, seconds)
    return {name: Quantiles.of(values) for name, values in times.items()}


def _times(case: Case, seconds: float) -> dict[str, list[float]]:
    """All ranks take part in every round."""
    data = make_case(case, torch.device("cpu"))
    layout, own = _layout(case.rows)
    keywords = constants(case, data)
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


def _layout(rows: int) -> tuple[RankLayout, slice]:
    world_size, rank = dist.get_world_size(), dist.get_rank()
    share = [rows // world_size + (r < rows % world_size) for r in range(world_size)]
    layout = RankLayout(dist.group.WORLD, rank, tuple(share))
    return layout, layout.own


@dataclass(frozen=True)
class Exactness:
    """Relative errors of the averaged parameter gradients beside one process on the whole batch, and logged / true value.

    `gradient_error`: that process computes in float32 too, so what differs is the distribution. `rounding_error`: it
    computes in float64.
    """

    kernel: str
    provider: str
    ranks: int
    gradient_error: float
    rounding_error: float
    value_ratio: float


def measure_exactness(world_size: int, rows: int, columns: int) -> list[Exactness]:
    """Every loss and provider on `world_size` ranks, through a linear layer whose gradients data parallelism averages."""
    found: list[Exactness] = run_ranks(world_size, _exactness, rows, columns)
    return found


def _exactness(rows: int, columns: int) -> list[Exactness]:
    found = []
    for kernel, loss in OURS.items():
        case = Case(kernel, rows, columns, 4, 0.1 if kernel == "ranking" else None)
        data = make_case(case, torch.device("cpu"))
        keywords = constants(case, data)
        one_process = partial(loss, **keywords)
        _, single = _through_layer(data.x_ND, data.y_N, one_process)
        in_double = partial(loss, backend="reference", **keywords)
        true_value, true = _through_layer(data.x_ND.double(), data.y_N, in_double)
        _, own = _layout(rows)
        for name, form in _forms(kernel, one_process).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other libraries
                value, gradient = _through_layer(data.x_ND[own], data.y_N[own], form)
            for tensor in (gradient, value):
                dist.all_reduce(tensor)
                tensor /= dist.get_world_size()
            errors = relative_error(gradient, single), relative_error(gradient, true)
            found.append(Exactness(kernel, name, dist.get_world_size(), *errors, float(value / true_value)))
    return found


def _through_layer(
    x_BD: Tensor, y_B: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Value and flattened parameter gradient, float64."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(x_BD.shape[1], x_BD.shape[1], bias=False).to(x_BD.dtype)
    value = loss(layer(x_BD), y_B)
    value.backward()
    assert layer.weight.grad is not None
    return value.detach().double(), layer.weight.grad.double().flatten()


def _forms(kernel: str, loss: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Ours; what toolkits do without a gather (each rank alone); pytorch-metric-learning's wrapper, both settings."""
    forms: dict[str, Callable[..., Tensor]] = {
        "maskreid": partial(loss, group=dist.group.WORLD),
        "each rank alone": loss,
    }
    if importlib.util.find_spec("pytorch_metric_learning"):
        for efficient in (False, True):
            form = _metric_learning(kernel, efficient)
            if form:
                forms[f"metric-learning, efficient={efficient}"] = form
    return forms


def _metric_learning(kernel: str, efficient: bool) -> Callable[..., Tensor] | None:
    from pytorch_metric_learning import distances, losses, miners, reducers
    from pytorch_metric_learning.utils import distributed

    euclidean, mean = distances.LpDistance(normalize_embeddings=False), reducers.MeanReducer()
    if kernel == "batch_hard":
        triplet = losses.TripletMarginLoss(0.3, distance=euclidean, reducer=mean)
        miner = distributed.DistributedMinerWrapper(
            miners.BatchHardMiner(distance=euclidean), efficient=efficient
        )
        wrapped = distributed.DistributedLossWrapper(triplet, efficient=efficient)
        return lambda x, y: wrapped(x, y, miner(x, y))
    if kernel == "supcon":
        supcon = losses.SupConLoss(temperature=0.1, reducer=mean)
        form: Callable[..., Tensor] = distributed.DistributedLossWrapper(supcon, efficient=efficient)
        return form
    return None
