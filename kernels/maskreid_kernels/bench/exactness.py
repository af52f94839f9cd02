"""`bench exactness`: gradients and logged values over gloo ranks, against one process on the whole batch."""

import argparse
import datetime
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from .cases import Case, constants, make_case
from .command_line import OneLineParser
from .figures import BenchError, Promise, aligned, json_line, results, write_rows
from .measure import relative_error
from .over_ranks import own_layout, result_over_ranks
from .providers import OURS

COLUMNS = ("loss", "provider", "ranks", "error, float32", "error, float64", "logged / true")


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 1 when our gradients are off by more than 1e-6."""
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ranks", type=int, action="append", help="world size; repeatable (1, 2, 3, 4)")
    parser.add_argument("--rows", type=int, default=240, help="rows of the global batch, from 8")
    parser.add_argument("--columns", type=int, default=128, help="columns of a row")
    parser.add_argument("--output", type=Path, help="write the table as CSV here")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, nothing else")
    options = parser.parse_args(arguments)
    if options.rows < 8 or options.columns < 1 or min(options.ranks or (1,)) < 1:
        raise BenchError("use --rows from 8, --columns and --ranks from 1")
    found = []
    for world_size in options.ranks or (1, 2, 3, 4):
        found += measure_exactness(world_size, options.rows, options.columns)
    found.sort(key=lambda e: (e.kernel, e.provider != "maskreid", e.provider, e.ranks))
    if not options.json:
        print(f"{options.rows} x {options.columns}, float32, beside one process")
        print(aligned([COLUMNS, *(_cells(e) for e in found)], left=2))
    if options.output:
        today = datetime.date.today().isoformat()
        write_rows(options.output, [{"date": today, **vars(e)} for e in found])
    worst = max(e.gradient_error for e in found if e.provider == "maskreid")
    promise = Promise("worst gradient error of ours, in millionths", 1e6 * worst, 1.0, False)
    print(json_line(results([vars(e) for e in found], [promise])) if options.json else promise.line())
    return 0 if promise.kept else 1


def _cells(e: "Exactness") -> tuple[str, ...]:
    errors = (f"{e.gradient_error:.1e}", f"{e.rounding_error:.1e}")
    return (e.kernel, e.provider, str(e.ranks), *errors, f"{e.value_ratio:.6f}")


@dataclass(frozen=True)
class Exactness:
    """Relative errors of the averaged parameter gradients beside one process on the whole batch, and logged /
    true value.

    `gradient_error`: that process computes in float32 too, so what differs is the distribution.
    `rounding_error`: it computes in float64.
    """

    kernel: str
    provider: str
    ranks: int
    gradient_error: float
    rounding_error: float
    value_ratio: float


def measure_exactness(world_size: int, rows: int, columns: int) -> list[Exactness]:
    """Every loss and provider on `world_size` ranks, through a linear layer whose gradients data parallelism
    averages."""
    found: list[Exactness] = result_over_ranks(world_size, _exactness, rows, columns)
    return found


def _exactness(rows: int, columns: int) -> list[Exactness]:
    found = []
    for kernel, loss in OURS.items():
        case = Case(kernel, rows, columns, 4, 0.1 if kernel == "ranking" else None)
        data = make_case(case, torch.device("cpu"))
        keywords = constants(case, data.margin)
        one_process = partial(loss, **keywords)
        _, single = _through_layer(data.x_ND, data.y_N, one_process)
        in_double = partial(loss, backend="reference", **keywords)
        true_value, true = _through_layer(data.x_ND.double(), data.y_N, in_double)
        _, own = own_layout(rows)
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
    """Ours; what toolkits do without a gather (each rank alone); pytorch-metric-learning's wrapper, both
    settings."""
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
    if kernel == "supervised_contrastive":
        contrastive = losses.SupConLoss(temperature=0.1, reducer=mean)
        form: Callable[..., Tensor] = distributed.DistributedLossWrapper(contrastive, efficient=efficient)
        return form
    return None
