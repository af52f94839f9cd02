"""Converting data sets, with a progress bar."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from maskreid_shards import ConversionReport, OnBadMask, convert_market1501


def run_market1501(
    src: Path, out: Path, on_bad_mask: OnBadMask, shard_bytes: int, seed: int
) -> ConversionReport:
    """`maskreid_shards.convert_market1501` with a bar on standard error."""
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)
        return convert_market1501(
            src,
            out,
            on_bad_mask=on_bad_mask,
            shard_bytes=shard_bytes,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
