"""What a launcher tells a process in environment variables; nothing else reads them.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Slurm's `srun` sets
SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, and leaves MASTER_ADDR to the user: without it a process is
alone, since a batch script that has several tasks has these variables too. Tried by setting the variables;
not yet under Slurm itself. Open MPI's `mpirun` sets OMPI_COMM_WORLD_RANK and its like, and leaves MASTER_ADDR
to the user too. With none of them, a process is rank 0 of 1.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from maskreid_dist.errors import UserError
from maskreid_dist.training.listening import GLOO, LOOPBACK, address_of

DEFAULT_PORT = "29500"  # torch's own


@dataclass(frozen=True)
class Place:
    """This process among `size` ranks, and its number among those of its machine."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place_of_process(environment: Mapping[str, str] = os.environ) -> Place:
    """Raises UserError: a variable that is missing or no number, a rank outside its
    world, port 0, srun without MASTER_ADDR."""
    if "RANK" in environment:
        return _place(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "MASTER_ADDR" in environment and "SLURM_PROCID" in environment:
        return _place(environment, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if "MASTER_ADDR" in environment and "OMPI_COMM_WORLD_RANK" in environment:
        world = "OMPI_COMM_WORLD_"
        return _place(environment, f"{world}RANK", f"{world}SIZE", f"{world}LOCAL_RANK")
    # Only the launchers' own steps have these: several processes that take themselves for rank 0 would spoil
    # each other's run.
    for launcher, tasks in (("srun", "SLURM_STEP_NUM_TASKS"), ("mpirun", "OMPI_COMM_WORLD_SIZE")):
        if _number(environment, tasks, 1) > 1:
            raise UserError(
                f"{launcher} starts {environment[tasks]} tasks, and MASTER_ADDR is not set: "
                "export the first node's name there, and a free port in MASTER_PORT"
            )
    return Place()


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks for all; one whose variables are wrong speaks, of srun's and mpirun's
    tasks the first."""
    try:
        return place_of_process(environment).is_first
    except UserError:
        first = environment.get("SLURM_PROCID", environment.get("OMPI_COMM_WORLD_RANK", "0")) == "0"
        return "RANK" in environment or first


def tell_libraries(place: Place, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that torch and DeepSpeed read, where the launcher has not."""
    if (
        "RANK" not in environment and place.size == 1
    ):  # alone: a port of its own, beside others that are alone
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    if place.size == 1 and address_of(LOOPBACK) is not None:
        environment[GLOO] = LOOPBACK  # gloo of one process listens too, and need not where others reach it
    environment.setdefault("MASTER_PORT", DEFAULT_PORT)
    environment.update(RANK=str(place.rank), WORLD_SIZE=str(place.size), LOCAL_RANK=str(place.local_rank))


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _place(environment: Mapping[str, str], rank: str, size: str, local_rank: str) -> Place:
    ranks = _number(environment, size)
    place = Place(_number(environment, rank), _number(environment, local_rank, 0), ranks)
    if not 0 <= place.rank < ranks:
        raise UserError(f"{rank} is {place.rank} and {size} is {ranks}: ranks count from 0 to {size} - 1")
    if ranks > 1 and environment.get("MASTER_PORT") == "0":  # each rank would wait for the others in vain
        raise UserError("MASTER_PORT is 0: give a free one (--master_port), or torchrun --standalone")
    return place


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in environment and default is not None:
        return default
    try:
        return int(environment[name])
    except KeyError:
        raise UserError(
            f"{name} is not set; start with deepspeed, torchrun, srun or mpirun, or unset RANK"
        ) from None
    except ValueError:
        raise UserError(f"{name} is {environment[name]!r}, not a number") from None
