"""`maskreid bench retrieval`."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal


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
