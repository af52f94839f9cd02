"""A command's work in this process, or shared by the ranks that a launcher started."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import typer

from maskreid_dist.errors import UserError
from maskreid_dist.training.environment import place_of_process

if TYPE_CHECKING:
    from maskreid_dist.evaluation.ranks import Ranks


def ranking_on(ranks: "Ranks", where: Literal["cpu", "gpu"]) -> "Ranks":
    """The same, with `--distances-on`. Raises UserError: there is no GPU."""
    if where == "cpu":
        return ranks
    if ranks.device.type == "cpu":
        raise UserError("--distances-on gpu: torch finds no GPU here; leave it out")
    return replace(ranks, distances_on=ranks.device)


def share_work(work: "Callable[[Ranks], None]") -> None:
    """Do `work`: alone, or with the other ranks of `torchrun`, `deepspeed`, `srun` or `mpirun`. Raises
    typer.Exit with their status, the same on all, if any of them failed."""
    place = place_of_process()
    if place.size == 1:
        from maskreid_dist.evaluation.ranks import Ranks

        work(Ranks())
        return
    # A rank that leaves while others ask its store is said in a line of ours, without torch's own.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    from maskreid_dist.training.together import work_together

    status = work_together(place, work)
    sys.stdout.flush()
    if status:
        raise typer.Exit(status)
