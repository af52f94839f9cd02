"""Converting data sets, with a progress bar."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from maskreid_dist.errors import UserError
from maskreid_dist.files import check_writable
from maskreid_shards import ConversionReport, Layout, MaskOptions, OnBadMask, convert
from maskreid_shards.convert import check_fresh


def run_conversion(
    scan: Callable[[], Layout],
    out: Path,
    *,
    dataset: str,
    on_bad_mask: OnBadMask,
    mask_options: MaskOptions,
    make_masks: Callable[[Layout], list[str]],
    shard_bytes: int,
    seed: int,
    workers: int,
    expect_published: bool,
) -> ConversionReport:
    """`maskreid_shards.convert` of what `scan` finds, with a bar on standard error.

    `make_masks` is called with the layout before it is converted; what it returns is printed.

    Raises UserError under `expect_published`, before anything is written: counts that are not the published
    ones, or a data set whose published counts are not known.
    """
    layout = scan()
    if expect_published:
        _check_published(layout)
    check_fresh(out)  # before masks are made: that may take hours
    check_writable(out, folder=True)
    for line in make_masks(layout):
        print(line)
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)
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
