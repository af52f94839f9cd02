"""`maskreid bench convert`."""

import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.carried import WALKERS, carried_shards
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.terminal import Terminal

SCALE_MB = 1000  # of a process, whatever the number of pairs


@one_line_errors
def bench_convert(
    source: Annotated[
        Path | None,
        typer.Option(help="Folder in Market-1501's layout. Default: the files inside --shards, extracted."),
    ] = None,
    shards: Annotated[Path, typer.Option(help="Shards to extract where no --source is given.")] = Path(
        WALKERS
    ),
    workers: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable. Default: 1, 2.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Medians are over these, after one to warm up.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Write the table as CSV here.")] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1000,
            help="Instead: convert, verify --quick, open and plan a made-up set of so many small pairs.",
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where that set is made, and removed. Default: the temporary folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pairs per second of converting loose files, per core (CPU time) and of wall time; with --pairs the time
    and memory that a large set takes."""
    if pairs is not None:
        _bench_scale(pairs, (workers or [1])[0], folder, output, as_json)
    from maskreid_kernels.bench.figures import Promise, write_rows
    from maskreid_shards.bench.convert import loose_files, measure_conversion

    console = Terminal(quiet=as_json)
    shards = shards if source else Path(carried_shards(str(shards)))
    with loose_files(source, shards) as folder, console.status("converting"):
        found = [measure_conversion(folder, count, runs) for count in workers or (1, 2)]
    table = Table(title=f"{found[0].pairs} pairs, medians of {runs}")
    for heading in ("workers", "pairs/s per core", "pairs/s", "CPU s", "wall s"):
        table.add_column(heading)
    for row in found:
        figures = (row.core_pairs_s, row.wall_pairs_s)
        table.add_row(
            str(row.workers), *(f"{f:,.0f}" for f in figures), f"{row.cpu_s:.2f}", f"{row.wall_s:.2f}"
        )
    console.print(table)
    if output:
        write_rows(output, [{"date": datetime.date.today().isoformat(), **vars(row)} for row in found])
    promise = Promise("pairs/s per core", found[0].core_pairs_s, 3000, True)
    finish(as_json, console, [vars(row) for row in found], [promise])


def _bench_scale(
    pairs: int, workers: int, folder: Path | None, output: Path | None, as_json: bool
) -> NoReturn:
    """The stages of a large set, which is removed; exit status 1 where a process takes more than 1 GB."""
    import tempfile

    from maskreid_kernels.bench.figures import Promise, write_rows
    from maskreid_shards import SHARD_BYTES
    from maskreid_shards.bench.scale import check_room, measure_scale

    console = Terminal(quiet=as_json)
    check_room(Path(folder or tempfile.gettempdir()), pairs)
    costs = []
    with (
        console.status(f"{pairs} pairs: made and converted") as status,
        tempfile.TemporaryDirectory(prefix="maskreid-bench-", dir=folder) as place,
    ):
        for cost in measure_scale(Path(place), pairs, workers, SHARD_BYTES):
            costs.append(cost)
            status.update(f"{pairs} pairs: {cost.stage} took {cost.wall_s:.0f} s, {cost.peak_mb:.0f} MB")
    table = Table(title=f"{pairs:,} pairs, {workers} workers", box=None)
    most = f"<= {SCALE_MB:,} MB"
    for heading in ("stage", "wall s", "CPU s", "peak MB", "a worker's peak MB", most):
        table.add_column(heading, justify="left" if heading in ("stage", most) else "right")
    for cost in costs:
        figures = (cost.wall_s, cost.cpu_s, cost.peak_mb, cost.workers_peak_mb)
        kept = max(cost.peak_mb, cost.workers_peak_mb) <= SCALE_MB
        table.add_row(cost.stage, *(f"{figure:,.1f}" for figure in figures), "PASS" if kept else "MISS")
    console.print(table)
    if output:
        write_rows(output, [{"date": datetime.date.today().isoformat(), **vars(cost)} for cost in costs])
    peak = max(max(cost.peak_mb, cost.workers_peak_mb) for cost in costs)
    promise = Promise("peak memory of a process, MB", peak, SCALE_MB, False)
    finish(as_json, console, [vars(cost) for cost in costs], [promise])
