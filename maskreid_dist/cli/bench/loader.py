"""`maskreid bench loader`."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.carried import WALKERS, carried_shards
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.terminal import Terminal


@one_line_errors
def bench_loader(
    shards: Annotated[Path, typer.Option(help="Shards whose train split is repeated.")] = Path(WALKERS),
    pairs: Annotated[
        int, typer.Option(min=64, help="In the repeated data set. Default: Market-1501's.")
    ] = 12936,
    workers: Annotated[list[int] | None, typer.Option(min=0, help="Repeatable. Default: 0, 1, 2, 4.")] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Batches of 16 x 4 of a figure; 3 times as many of warm augmentation.")
    ] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over these.")] = 5,
    cold: Annotated[bool, typer.Option(help="Measure with a cold page cache too.")] = True,
    drop_caches: Annotated[
        bool, typer.Option("--drop-caches", help="Cold: empty all caches of this machine, as root.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for the CSV, the plot and the report.")] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Instead: data.access indexed and stream, from the disk and from a server on the loopback "
            "that answers so late.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pairs per second of reading, decoding and augmenting, beside webdataset and
    loose files; memory of a worker."""
    shards = Path(carried_shards(str(shards)))
    if latency_ms is not None:
        _bench_access(shards, pairs, workers or [0, 2], steps, rounds, latency_ms, output, as_json)
    from maskreid_dist.bench import loader, loader_data, loader_report
    from maskreid_kernels.bench.figures import Machine, write_whole

    console = Terminal(quiet=as_json)
    machine = Machine.here("cpu")
    loader.check_peers()
    if drop_caches:
        loader_data.check_drop_caches()
    with console.status("writing the data set") as status, loader_data.repeated_pairs(shards, pairs) as data:
        bench = loader.LoaderBench(data, steps, drop_caches)
        runs = loader.all_runs(tuple(sorted(set(workers or (0, 1, 2, 4)))), cold)
        speeds = loader.measure(bench, runs, rounds, status.update)
        status.update("memory of a worker over an epoch")
        memory = loader.worker_memory(bench)
        found = loader_report.LoaderResults(len(data.split), steps, drop_caches, speeds, memory)
    table = Table(title=f"{found.pairs} pairs, pairs per second, medians of {rounds}", box=None)
    for number, heading in enumerate(loader_report.COLUMNS):
        table.add_column(heading, justify="right" if number in (2, 4, 5, 6, 7) else "left", no_wrap=True)
    for cells in loader_report.table(found):
        table.add_row(*cells, style="bold" if cells[3] == "shards" else "")
    console.print(machine.line(), highlight=False)
    console.print(table)
    promises = loader_report.promises(found)
    if output:
        stem = output / f"{machine.date}-loader"
        loader_report.write_csv(stem.with_suffix(".csv"), found, machine)
        loader_report.write_plot(stem.with_suffix(".png"), found)
        text = loader_report.markdown(found, machine, stem.with_suffix(".png"))
        write_whole(stem.with_suffix(".md"), text.encode())
        console.print(f"written: {stem}.csv, .md, .png")
    rows = [dict(zip(loader_report.COLUMNS, row, strict=True)) for row in loader_report.table(found)]
    finish(as_json, console, rows, promises, machine)


def _bench_access(
    shards: Path,
    pairs: int,
    workers: list[int],
    steps: int,
    rounds: int,
    latency_ms: float,
    output: Path | None,
    as_json: bool,
) -> NoReturn:
    """Both values of data.access; exit status 1 where a promise is missed."""
    from maskreid_dist.bench.access import access_promises, access_rows, measure_access
    from maskreid_dist.bench.loader_data import repeated_pairs
    from maskreid_kernels.bench.figures import Machine, write_rows

    console = Terminal(quiet=as_json)
    machine = Machine.here("cpu")
    with console.status("writing the data set") as status, repeated_pairs(shards, pairs) as data:
        found = measure_access(data, workers, steps, rounds, latency_ms, status.update)
    rows = access_rows(found)
    table = Table(title=f"{pairs} pairs, pairs per second, medians of {rounds}", box=None)
    for heading in ("place", "access", "workers", "pairs/s", "y20", "y80", "on a core of its own"):
        table.add_column(heading, justify="left" if heading in ("place", "access") else "right")
    for row in rows:
        speeds = (row["pairs_s"], row["y20"], row["y80"], row["alone_pairs_s"])
        shown = ("" if speed is None else f"{speed:,.0f}" for speed in speeds)
        table.add_row(row["place"], row["access"], str(row["workers"]), *shown)
    console.print(machine.line(), highlight=False)
    console.print(table)
    if output:
        about = {"latency_ms": latency_ms, "pairs": pairs, "steps": steps, "rounds": rounds, **vars(machine)}
        path = output / f"{machine.date}-access.csv"
        write_rows(path, [{**row, **about} for row in rows])
        console.print(f"written: {path}")
    finish(as_json, console, rows, access_promises(found, latency_ms), machine)
