"""`maskreid bench`: measurements that anyone can repeat."""

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.table import Table

from maskreid_dist.cli import mask_flags as flags
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say_json

if TYPE_CHECKING:
    from maskreid_kernels.bench.figures import Machine, Promise

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure the loss step, the loader, the converters, batches, the ranking and the masks.",
)


def finish(
    as_json: bool,
    console: Terminal,
    rows: Sequence[Mapping[str, Any]],
    promises: "Sequence[Promise]",
    machine: "Machine | None" = None,
) -> NoReturn:
    """Print the promises, or with --json all there is; exit status 1 where a promise is missed."""
    from maskreid_kernels.bench.figures import results

    for promise in promises:
        console.print(promise.line(), highlight=False)
    if as_json:
        say_json(results(rows, promises, machine))
    raise typer.Exit(0 if all(promise.kept for promise in promises) else 1)


# These two have their options in maskreid_kernels.bench, --help too.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@bench_app.command("loss", context_settings=PASSED_ON, add_help_option=False)
@one_line_errors
def bench_loss(context: typer.Context) -> None:
    """Time, peak memory and gradient error of the losses, beside eager, lean and library forms of them."""
    _of_the_kernels("loss", context)


@bench_app.command("exactness", context_settings=PASSED_ON, add_help_option=False)
@one_line_errors
def bench_exactness(context: typer.Context) -> None:
    """Gradients and logged values of every loss over gloo ranks, against one process on the whole batch."""
    _of_the_kernels("exactness", context)


def _of_the_kernels(command: str, context: typer.Context) -> None:
    from maskreid_kernels.bench.command_line import main

    raise typer.Exit(main([command, *context.args], program="maskreid bench"))


@bench_app.command("plan")
@one_line_errors
def bench_plan(
    identities: Annotated[int, typer.Option(min=1000, help="Made up, with a Zipf tail.")] = 1_000_000,
    as_json: AsJson = False,
) -> None:
    """Time and memory of the plan; exit status 1 when a million identities take more than 1 s or 64 MB."""
    from maskreid_kernels.bench.figures import Promise
    from maskreid_shards.bench.plan import measure_plan

    console = Terminal(quiet=as_json)
    cost = measure_plan(identities)
    console.print(
        f"{cost.identities} identities, P x K = 64 x 4; promises are for a million", highlight=False
    )
    console.print(f"a later step: {cost.next_step_ms:.2f} ms", highlight=False)
    promises = (
        Promise("first step of an epoch, ms", cost.first_step_ms, 1000, False),
        Promise("memory of that step, MB", cost.peak_mb, 64, False),
    )
    finish(as_json, console, [vars(cost)], promises)


SCALE_MB = 1000  # of a process, whatever the number of pairs


@bench_app.command("convert")
@one_line_errors
def bench_convert(
    source: Annotated[
        Path | None,
        typer.Option(help="Folder in Market-1501's layout. Default: the files inside --shards, extracted."),
    ] = None,
    shards: Annotated[Path, typer.Option(help="Shards to extract where no --source is given.")] = Path(
        "shards/walkers"
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


@bench_app.command("loader")
@one_line_errors
def bench_loader(
    shards: Annotated[Path, typer.Option(help="Shards whose train split is repeated.")] = Path(
        "shards/walkers"
    ),
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


@bench_app.command("mixing")
@one_line_errors
def bench_mixing(
    shards: Annotated[str, typer.Argument(help="A folder or a URL.")] = "shards/walkers",
    identities: Annotated[int, typer.Option(min=2, help="P, over all ranks.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="K.")] = 4,
    world: Annotated[int, typer.Option(min=1, help="Ranks.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Data workers of a rank.")] = 2,
    pools: Annotated[
        list[int] | None, typer.Option("--pool", min=1, help="Repeatable. Default: 32, 64, 256.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the recipe.")] = 0,
    epochs: Annotated[int, typer.Option(min=2, help="How many are planned.")] = 10,
    as_json: AsJson = False,
) -> None:
    """How mixed batches are, with data.access indexed and stream: steps of an epoch; shards that a batch is
    of; of the pairs of identities in a batch, how many are of one shard; how many of them meet in the next
    epoch again. No sample is read."""
    from maskreid_shards import Plan, StreamPlan, open_shards
    from maskreid_shards.bench.mixing import mixing

    split = open_shards(shards).split("train")
    of_sample = split.index["shard"].astype("int64")
    plan = Plan.pk(split.table, identities=identities, images=images, seed=seed)
    plan.check_world(world)
    plans: dict[str, Plan | StreamPlan] = {"indexed": plan}
    for pool in pools or (32, 64, 256):
        readers = max(1, workers)
        streamed = StreamPlan.of(plan, of_sample, pool=pool, world=world, readers=readers)
        plans[f"stream, pool of {pool}"] = streamed
    table = Table(title=f"{shards}: {epochs} epochs, {world} ranks x {workers} workers", box=None)
    for heading in ("", "steps", "shards a batch", "of one shard, %", "met again, %"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    rows = []
    for name, each in plans.items():
        found = mixing(each, of_sample, world, epochs)
        rows.append({"access": name, "steps_per_epoch": each.steps_per_epoch, **vars(found)})
        shares = (f"{100 * found.one_shard:.1f}", f"{100 * found.again:.1f}")
        table.add_row(name, str(each.steps_per_epoch), f"{found.shards:.1f}", *shares)
    console = Terminal(quiet=as_json)
    console.print(table)
    finish(as_json, console, rows, [])


@bench_app.command("retrieval")
@one_line_errors
def bench_retrieval(
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of every size; promises are for 1.", show_default=True)
    ] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="The smallest time of these counts.")] = 5,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--case", help="Only this one and what it is compared with, say nearly-equal; repeatable."
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            help="Instead of the cases: market1501 beside its peers, msmt17, million (a memory-mapped file); "
            "with peak memory; repeatable.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """CPU time of an exact evaluation on one thread, beside the bare float32 product and an argsort."""
    from maskreid_dist.bench import retrieval
    from maskreid_kernels.bench.figures import Machine, write_rows

    if sizes and names:
        raise UserError("--case and --size: give one of them")
    if sizes:
        _bench_retrieval_sizes(sizes, share, output, as_json)
    cases = retrieval.chosen(retrieval.cases(share), names or [])
    console = Terminal(quiet=as_json)
    machine = Machine.here("cpu")
    with console.status("ranking") as status:
        costs = retrieval.measure(cases, rounds, status.update)
    table = Table(
        title=f"{retrieval.DIMENSIONS} dimensions, CPU seconds of one thread, the least of {rounds}", box=None
    )
    for heading in ("case", "size", "good", "ranking", "product", "argsort", "nearest", "/ product"):
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    for cost in costs:
        times = (cost.evaluation_s, cost.product_s, cost.argsort_s, cost.nearest_s)
        table.add_row(
            cost.case,
            f"{cost.queries} x {cost.gallery}",
            f"{cost.good:.0f}",
            *(f"{seconds:.3f}" for seconds in times),
            f"{cost.products:.1f}",
        )
    console.print(table)
    if output:
        about = {"date": machine.date, "commit": machine.commit, "processor": machine.device}
        path = output / f"{machine.date}-retrieval.csv"
        write_rows(path, [{**about, **vars(cost)} for cost in costs])
        console.print(f"written: {path}")
    finish(as_json, console, [vars(cost) for cost in costs], retrieval.promises(costs), machine)


def _bench_retrieval_sizes(names: list[str], share: float, output: Path | None, as_json: bool) -> NoReturn:
    from maskreid_dist.bench import retrieval_sizes
    from maskreid_kernels.bench.figures import Machine, write_rows

    if unknown := [name for name in names if name not in retrieval_sizes.SIZES]:
        raise UserError(f"--size {unknown[0]}: choose of {', '.join(retrieval_sizes.SIZES)}")
    console = Terminal(quiet=as_json)
    machine = Machine.here("cpu")
    wanted = [retrieval_sizes.SIZES[name] for name in names]
    with console.status("ranking") as status:
        costs = {size.name: retrieval_sizes.measure(size, share, status.update) for size in wanted}
    table = Table(title=f"{retrieval_sizes.DIMENSIONS} dimensions, CPU seconds of one thread", box=None)
    for heading in ("size", "queries x gallery", "by", "seconds", "MB", "mAP"):
        table.add_column(
            heading, justify="right" if heading in ("seconds", "MB", "mAP") else "left", no_wrap=True
        )
    for size in wanted:
        for cost in costs[size.name]:
            seconds = "not installed" if cost.seconds is None else f"{cost.seconds:.2f}"
            peak = "" if cost.peak_mb is None else f"{cost.peak_mb:.0f}"
            found = "" if cost.mAP is None else f"{100 * cost.mAP:.4f}"
            pairs = f"{round(size.queries * share)} x {round(size.gallery * share)}"
            table.add_row(size.name, pairs, cost.work, seconds, peak, found)
    console.print(machine.line(), highlight=False)
    console.print(table)
    promises = [one for size in wanted for one in retrieval_sizes.promises(size, costs[size.name])]
    if output:
        about = {"date": machine.date, "commit": machine.commit, "processor": machine.device}
        path = output / f"{machine.date}-retrieval-sizes.csv"
        write_rows(path, [{**about, **vars(cost)} for name in costs for cost in costs[name]])
        console.print(f"written: {path}")
    rows = [{"size": name, **vars(cost)} for name in costs for cost in costs[name]]
    finish(as_json, console, rows, promises, machine)


@bench_app.command("masks")
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


@bench_app.command("reranking")
@one_line_errors
def bench_reranking(
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", help="market1501 (default) or msmt17; repeatable."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of every size; promises are for 1.", show_default=True)
    ] = 1.0,
    nearly_equal: Annotated[
        bool,
        typer.Option("--nearly-equal", help="Rows one ulp apart too, as of a collapsed network; on a CPU."),
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")
    ] = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder for the CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time and peak memory of k-reciprocal re-ranking, beside the bare product of all images with all."""
    import torch

    from maskreid_dist.bench import reranking
    from maskreid_kernels.bench.figures import Machine, write_rows

    wanted = sizes or ["market1501"]
    if unknown := [name for name in wanted if name not in reranking.SIZES]:
        raise UserError(f"--size {unknown[0]}: choose of {', '.join(reranking.SIZES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if nearly_equal and place != "cpu":
        raise UserError("--nearly-equal is measured on a CPU: add --device cpu")
    console = Terminal(quiet=as_json)
    machine = Machine.here(place)
    with console.status("measuring"):
        kinds = (False, True) if nearly_equal else (False,)
        costs = [
            reranking.measure(reranking.SIZES[name], share, place, ulp) for name in wanted for ulp in kinds
        ]
    table = Table(box=None)
    for name in ("size", "rows", "images", "seconds", "of CPU", "MB", "product, s", "mAP", "re-ranked"):
        table.add_column(name, justify="left" if name == "size" else "right")
    rows = []
    for cost in costs:
        images = round((cost.size.queries + cost.size.gallery) * share)
        figures = {
            "seconds": cost.clock_s,
            "cpu_s": cost.cpu_s,
            "peak_mb": cost.peak_mb,
            "product_s": cost.product_s,
            "map_before": 100 * cost.before,
            "map_after": 100 * cost.after,
        }
        checked = vars(cost.check) if cost.check else {}
        rows.append({"size": cost.size.name, "rows": cost.rows, "images": images, **figures, **checked})
        decimals = 1 if cost.check is None else 2
        cells = (f"{figure:.{decimals}f}" for figure in figures.values())
        table.add_row(cost.size.name, cost.rows, str(images), *cells)
    console.print(machine.line(), highlight=False)
    console.print(table)
    for cost in costs:
        if cost.check:
            there, host = 100 * cost.check.device, 100 * cost.check.host
            text = f"{cost.size.name}, {cost.check.queries} queries: mAP {there:.4f} on the GPU, {host:.4f}"
            console.print(f"{text} on the host", highlight=False)
    if output:
        path = output / f"{machine.date}-reranking.csv"
        about = {"date": machine.date, "commit": machine.commit, "processor": machine.device}
        write_rows(path, [{**about, **row} for row in rows])
        console.print(f"written: {path}")
    finish(as_json, console, rows, reranking.promises(costs), machine)
