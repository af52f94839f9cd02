"""Ranks: what all of them do together, and how they stop together."""

import gc
import os
import signal
import sys
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from maskreid_dist.errors import UserError
from maskreid_dist.training.environment import Place
from maskreid_dist.training.launcher_watch import discard_lost_output
from maskreid_dist.training.machine import threads_of_rank
from maskreid_dist.training.meeting import Meeting


@dataclass(frozen=True)
class World:
    """This process among all, in a process group. `control` is a gloo group for decisions on the host:
    it never touches the GPU queue."""

    meeting: Meeting
    device: torch.device
    control: dist.ProcessGroup

    @property
    def rank(self) -> int:
        return self.meeting.place.rank

    @property
    def size(self) -> int:
        return self.meeting.place.size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """All ranks take part."""
        dist.barrier(group=self.control)

    def token(self) -> str:
        """A new name that every rank gets from rank 0, without the store: it may have gone with its
        launcher. All ranks take part."""
        token = torch.frombuffer(bytearray(uuid.uuid4().bytes), dtype=torch.uint8)
        dist.broadcast(token, 0, group=self.control)
        return bytes(token.tolist()).hex()

    def any_ranks(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true on any rank, in one all-reduce. All ranks take part."""
        votes = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(vote) for vote in votes.tolist()]


def choose_device(place: Place) -> torch.device:
    """This rank's GPU, the CPU without any. Raises UserError: fewer GPUs than ranks on this machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if place.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torch finds {torch.cuda.device_count()} GPUs here, and this is local rank {place.local_rank}; "
            "start no more ranks than GPUs"
        )
    return torch.device("cuda", place.local_rank)


def take_threads(meeting: Meeting) -> None:
    """Use this rank's part of its machine's processors on a CPU, or OMP_NUM_THREADS where it is set."""
    own = meeting.members[meeting.place.rank].processors
    threads = threads_of_rank(os.environ, own, (member.processors for member in meeting.beside()))
    if threads is not None:
        torch.set_num_threads(threads)


def start_world(meeting: Meeting, device: torch.device) -> World:
    """Join the process group: NCCL with one GPU a rank, gloo without. All ranks take part."""
    import deepspeed  # here, not at the top: it takes seconds to import and prints while it does

    place = meeting.place
    options: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if place.size > 1:
            options["device_id"] = device
    else:
        take_threads(meeting)
        # DeepSpeed would compile a shared-memory all-reduce at the first start (needs g++) and leave a 69 MB
        # file in /dev/shm for each rank. Plain gloo does without both.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = timedelta(seconds=meeting.timeout_s)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=meeting.store_of_group(),
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
        **options,
    )
    deepspeed.init_distributed(
        auto_mpi_discovery=False, verbose=False, timeout=timeout
    )  # takes torch's group
    return World(meeting, device, dist.new_group(backend="gloo", timeout=timeout))


def leave_world() -> None:
    """Leave the process group if there is one, and see its threads end where nothing else holds it.

    A thread of gloo that is alive at exit may drop a tensor of Python's while the interpreter shuts
    down, which aborts the process (pytorch#190489). It ends with the group's last reference, and a
    caught exception leaves some in a cycle.
    """
    if not dist.is_initialized():
        return
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # torch's, and DeepSpeed's own references to it
    else:
        dist.destroy_process_group()
    gc.collect()


@dataclass
class StopRequest:
    """Asks training to finish its step, save, and leave with status 75.

    Comes as SIGINT, SIGTERM, SIGUSR1 or SIGHUP to any rank, as a file `stop` in the
    run directory (seen by rank 0), or because a launcher has gone.
    """

    file: Path
    signalled: bool = field(default=False, init=False)

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup: it outlives its terminal
        signal.signal(signal.SIGHUP, _lose_the_terminal if outlives else self._on_signal)

    def ask(self) -> None:
        self.signalled = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ask()
        if number == signal.SIGHUP:  # the terminal has gone
            discard_lost_output()

    def here(self, world: World) -> bool:
        """Whether this rank was asked to stop; `World.any_rank` makes it everybody's."""
        return self.signalled or (world.is_first and self.file.exists())


def _lose_the_terminal(number: int, frame: FrameType | None) -> None:
    """What is printed from here on goes nowhere, in place of an error."""
    discard_lost_output()
