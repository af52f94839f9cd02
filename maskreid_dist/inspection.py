"""Looking into shard folders, with a progress bar."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from maskreid_shards import Problem, verify


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
