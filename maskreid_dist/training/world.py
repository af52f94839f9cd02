"""Ranks: how a process learns its place, what all of them do together, how they stop together.

The same script runs under `deepspeed`, `torchrun` and plain `python`: the first two set RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; without them the process is rank 0 of 1.
"""

import gc
import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all. `control` is a gloo group for decisions on the host: it never touches the GPU queue."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """All ranks take part."""
        dist.barrier(group=self.control)

    def any_rank(self, flag: bool) -> bool:
        """True on every rank if it is true on one. All ranks take part."""
        return self.any_ranks(flag)[0]

    def any_ranks(self, *flags: bool) -> list[bool]:
        """`any_rank` of several flags in one all-reduce."""
        votes = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(vote) for vote in votes.tolist()]

    def first_message(self, message: str | None) -> str:
        """The message of the lowest rank that has one, on every rank. All ranks take part."""
        return next(text for text in self.gather(message) if text is not None)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank. All ranks take part."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, value: object) -> object:
        """Rank 0's value, on every rank. All ranks take part."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def start_world(timeout_s: int) -> World:
    """Join the process group: NCCL with one GPU a rank, gloo without. All ranks take part."""
    import deepspeed  # here, not at the top: it takes seconds to import and prints while it does

    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ["WORLD_SIZE"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
        # DeepSpeed would compile a shared-memory all-reduce at the first start (needs g++) and leave a 69 MB file in
        # /dev/shm for each rank. Plain gloo does without both.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = timedelta(seconds=timeout_s)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        rank=rank,
        world_size=size,
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    return World(rank, local_rank, size, device, control)


def leave_world() -> None:
    """Leave the process group, and see its threads end where nothing else holds it.

    A thread of gloo that is alive at exit may drop a tensor of Python's while the interpreter shuts down, which aborts the
    process (pytorch#190489). It ends with the group's last reference, and a caught exception leaves some in a cycle.
    """
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # torch's, and DeepSpeed's own references to it
    else:
        dist.destroy_process_group()
    gc.collect()


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
