"""Looking into shard folders, with a progress bar."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from maskreid_shards import Plan, Problem, Split, verify


def run_verify(shards: Path, workers: int) -> list[Problem]:
    """`maskreid_shards.verify` with a bar on standard error that counts shards."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verifying", total=None)
        return verify(
            shards,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def plan_lines(split: Split, plan: Plan, epoch: int, steps: int | None, world_size: int) -> Iterator[str]:
    """A JSON line per step and rank, in that order: `{"step", "rank", "keys", "pids"}`, what the rank draws in the step.

    steps: how many, from the start of the epoch; all of them for None.
    """
    for step in range(plan.steps_per_epoch if steps is None else min(steps, plan.steps_per_epoch)):
        for rank in range(world_size):
            draws = plan.rank_draws(epoch, step, rank, world_size)
            keys = [key.decode("ascii") for key in split.keys[draws.samples].tolist()]
            yield json.dumps({"step": step, "rank": rank, "keys": keys, "pids": draws.pids.tolist()})
