"""Ranks as gloo processes, for tests: as the benchmarks', but forked from a process that has imported torch,
which takes each rank seconds. It is started by the first test that wants ranks."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import start_processes

from maskreid_kernels.bench.gloo import run_rank

__all__ = ["run_ranks"]

# Nothing of this project: what its modules read when they are imported is the test's.
_IMPORTED = ["torch", "torch.distributed", "torch._dynamo", "hypothesis", "pytest"]


def run_ranks(function: Callable[..., None], world: int, folder: Path, *arguments: Any) -> None:
    """Call `function(rank, world, *arguments)` in `world` processes of one group, which meet in a file in
    `folder`."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    meeting = f"file://{folder}/rendezvous"
    asked = dict(os.environ), world, meeting, function, arguments
    start_processes(_run_rank, asked, nprocs=world, start_method="forkserver")


def _run_rank(rank: int, environment: dict[str, str], *asked: Any) -> None:
    os.environ.clear()  # the other process's, of the time when it began
    os.environ |= environment
    run_rank(rank, *asked)
