"""Run by path, with a checkout's kernels on PYTHONPATH: time steps of one loss there, and the bare product
beside them.

    python loss_step.py LOSS ROWS COLUMNS THREADS SECONDS ONE_RANK

Prints one JSON object: the least seconds of a step (forward + backward) and of x x^T. With one thread CPU
seconds of the process, which another program on the machine disturbs less; else wall seconds. Only what
commits of long ago have, too, is called: the public functions and `backend`.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import maskreid_kernels

IMAGES = 4


def batch(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Identities of four rows around a centre each."""
    generator = torch.Generator().manual_seed(rows + columns)
    labels = torch.arange(rows) // IMAGES
    centres = torch.randn(rows // IMAGES + 1, columns, generator=generator)
    return centres[labels] + torch.randn(rows, columns, generator=generator), labels


def margin_of(x: Tensor, y: Tensor, share: float) -> float:
    """The margin inside of which that share of the negatives of some rows lies."""
    unit = F.normalize(x[:2048])
    same = y[: len(unit), None] == y[: len(unit)]
    S = unit @ unit.t()
    gap = (S - S.masked_fill(~same, torch.inf).amin(1, keepdim=True))[~same]
    gap = gap[torch.randperm(len(gap), generator=torch.Generator().manual_seed(0))[:1_000_000]]
    return -float(gap.quantile(1 - share))


def step_of(name: str, x: Tensor, y: Tensor, group: dist.ProcessGroup | None) -> Callable[[], Tensor]:
    """The loss as a step calls it, every anchor active but for ranking's shares of violators."""
    constants: dict[str, Any] = {"group": group} if group is not None else {}
    if name.startswith("ranking_"):  # ranking_1 for 1 %
        constants["margin"] = margin_of(x.detach(), y, float(name.removeprefix("ranking_")) / 100)
        name = "ranking"
    if name == "batch_hard":
        constants |= {"normalize": True, "margin": 5.0}
    loss: Callable[..., Tensor] = getattr(maskreid_kernels, f"{name}_loss")
    return lambda: loss(x, y, **constants)


def least_seconds(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Of at least three calls, and of as many as fit."""
    call()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < end:
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def main(name: str, rows: int, columns: int, threads: int, seconds: float, one_rank: bool) -> None:
    torch.set_num_threads(threads)
    group = None
    if one_rank:
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch's stubs hide what it exports
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        group = dist.group.WORLD
    x, y = batch(rows, columns)
    loss = step_of(name, x.requires_grad_(), y, group)

    def step() -> None:
        x.grad = None
        loss().backward()

    clock = time.process_time if threads == 1 else time.perf_counter
    plain, out = x.detach(), torch.empty(rows, rows)
    found = {"step": least_seconds(step, seconds, clock)}
    found["product"] = least_seconds(lambda: torch.mm(plain, plain.t(), out=out), seconds / 2, clock)
    print(json.dumps(found))


if __name__ == "__main__":
    word, rows, columns, threads, seconds, one_rank = sys.argv[1:]
    main(word, int(rows), int(columns), int(threads), float(seconds), one_rank == "True")
