"""`maskreid bench masks`."""

import datetime
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from maskreid_dist.cli import mask_flags as flags
from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal


@one_line_errors
def bench_masks(
    source: Annotated[
        Path, typer.Argument(help="Folder in Market-1501's layout, with masks.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|PATTERN",
            help="Where the exact masks are, as --masks of convert.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        int | None,
        typer.Option(
            min=4, metavar="CROPS", help="Instead: the time of a mask and of its parts, on so many images."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of --speed.")] = 5,
    model: Annotated[flags.Model, typer.Option(help="Network that makes the others.")] = "pose",
    weights: Annotated[Path | None, typer.Option(help="Its weights. Default: the published ones.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the table as CSV here.")] = None,
    as_json: AsJson = False,
) -> None:
    """IoU of made masks with exact ones, crops per second, and what a colour histogram ranks with each."""
    from maskreid_dist.bench.mask_speed import measure_speed
    from maskreid_dist.bench.masks import measure
    from maskreid_dist.files import check_writable
    from maskreid_kernels.bench.figures import Machine, write_rows

    if output:
        check_writable(output)
    console = Terminal(quiet=as_json)
    if speed is not None:
        taken = measure_speed(source, speed, rounds, model=model, weights=weights)
        console.print(Machine.here("cpu").line(), highlight=False)
        for line in taken.lines():
            console.print(line, highlight=False)
        if output:
            write_rows(output, [{"date": datetime.date.today().isoformat(), **vars(taken)}])
        finish(as_json, console, [vars(taken)], [taken.promise()], Machine.here("cpu"))
    if against is None:
        raise UserError("--against: say where the exact masks are, or measure the time alone (--speed CROPS)")
    with console.status("masks") as status, tempfile.TemporaryDirectory(prefix="maskreid-bench-") as folder:
        found = measure(source, against, Path(folder), model=model, weights=weights, say=status.update)
    table = Table(title=f"{found.crops} crops", box=None)
    for heading in ("masks", "IoU", "median", "below 0.5", "crops/s per core", "mAP", "Rank-1"):
        table.add_column(heading, justify="left" if heading == "masks" else "right")
    for row in found.rows:
        shares = (row.iou, row.iou_median, row.iou_below_half)
        iou = ["" if share is None else f"{share:.3f}" for share in shares]
        crops_s = "" if row.crops_s is None else f"{row.crops_s:.0f}"
        table.add_row(row.name, *iou, crops_s, f"{row.mAP:.2f}", f"{row.rank1:.2f}")
    console.print(Machine.here("cpu").line(), highlight=False)
    console.print(table)
    kinds = ", ".join(f"{kind} {iou:.3f}" for kind, iou in found.by_kind.items())
    console.print(f"IoU of the {model} masks: identities {found.identities:.3f}; {kinds}", highlight=False)
    if output:
        date = datetime.date.today().isoformat()
        write_rows(output, [{"date": date, **vars(row)} for row in found.rows])
    rows = [vars(row) for row in found.rows]
    finish(as_json, console, rows, found.promises(), Machine.here("cpu"))
