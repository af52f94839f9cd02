"""Converting data sets, with a progress bar."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from maskreid_dist.errors import UserError
from maskreid_shards import ConversionReport, Layout, MaskOptions, OnBadMask, convert


def run_conversion(
    scan: Callable[[], Layout],
    out: Path,
    *,
    dataset: str,
    on_bad_mask: OnBadMask,
    mask_options: MaskOptions,
    shard_bytes: int,
    seed: int,
    workers: int,
    expect_published: bool,
) -> ConversionReport:
    """`maskreid_shards.convert` of what `scan` finds, with a bar on standard error.

    Raises UserError under `expect_published`, before anything is written: counts that are not the published
    ones, or a data set whose published counts are not known.
    """
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)
        layout = scan()
        if expect_published:
            _check_published(layout)
        return convert(
            layout,
            out,
            dataset=dataset,
            on_bad_mask=on_bad_mask,
            mask_options=mask_options,
            shard_bytes=shard_bytes,
            seed=seed,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _check_published(layout: Layout) -> None:
    if not layout.published:
        raise UserError(f"{layout.name}: the source's name does not say a data set with published counts")
    if layout.differences():
        raise UserError(f"{layout.name}: not as published: {'; '.join(layout.differences())}")
