"""Ranks: what all of them do together, and how they stop together."""

import gc
import os
import signal
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from maskreid_dist.training.environment import Place, tell_libraries

T = TypeVar("T")
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request after a save; the same command continues


@dataclass(frozen=True)
class World:
    """This process among all. `control` is a gloo group for decisions on the host:
    it never touches the GPU queue."""

    rank: int
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


def start_world(place: Place, timeout_s: int) -> World:
    """Join the process group at this place: NCCL with one GPU a rank, gloo without. All ranks take part."""
    import deepspeed  # here, not at the top: it takes seconds to import and prints while it does

    tell_libraries(place)
    if torch.cuda.is_available():
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.local_size))
        # DeepSpeed would compile a shared-memory all-reduce at the first start (needs g++) and leave a 69 MB
        # file in /dev/shm for each rank. Plain gloo does without both.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = timedelta(seconds=timeout_s)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        rank=place.rank,
        world_size=place.size,
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    return World(place.rank, place.size, device, control)


def leave_world() -> None:
    """Leave the process group, and see its threads end where nothing else holds it.

    A thread of gloo that is alive at exit may drop a tensor of Python's while the interpreter shuts
    down, which aborts the process (pytorch#190489). It ends with the group's last reference, and a
    caught exception leaves some in a cycle.
    """
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # torch's, and DeepSpeed's own references to it
    else:
        dist.destroy_process_group()
    gc.collect()


@dataclass
class StopRequest:
    """Asks training to finish its step, save, and leave with status 75.

    Comes as SIGINT, SIGTERM or SIGUSR1 to any rank, or as a file `stop` in the
    run directory (seen by rank 0).
    """

    file: Path
    signalled: bool = field(default=False, init=False)

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def here(self, world: World) -> bool:
        """Whether this rank was asked to stop; `World.any_rank` makes it everybody's."""
        return self.signalled or (world.is_first and self.file.exists())
