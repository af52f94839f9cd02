"""Ranks as gloo processes of one thread each, on this machine: for tests and benchmarks."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_ranks(function: Callable[..., None], world: int, folder: Path, *arguments: Any) -> None:
    """Call `function(rank, world, *arguments)` in `world` processes of one group, which meet in a file in
    `folder`."""
    meeting = f"file://{folder}/rendezvous"
    spawn(run_rank, (world, meeting, function, arguments), nprocs=world)


def run_rank(
    rank: int, world: int, meeting: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """What each process of `run_ranks` does. meeting: a URL of torch's."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    try:
        function(rank, world, *arguments)
    finally:
        dist.destroy_process_group()
        # A thread of gloo that is alive at exit may abort the process (pytorch#190489). It ends with the
        # group's last reference, and a caught exception leaves some in a cycle.
        gc.collect()
