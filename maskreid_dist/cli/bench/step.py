"""`maskreid bench step`."""

import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from maskreid_dist.cli.bench.finish import finish
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.cli.quiet import quiet_libraries
from maskreid_dist.terminal import Terminal


@one_line_errors
def bench_step(
    recipe: Annotated[Path, typer.Argument(help="Its shards are not read.")],
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Images of a step; repeatable. Default: 64.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="To measure each batch.")] = 5.0,
    output: Annotated[Path | None, typer.Option(help="Write the table as CSV here.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a recipe's training step takes on this machine, over noise: images a second, the loss's share,
    memory of a GPU."""
    quiet_libraries()
    from maskreid_dist.bench.step import measure, promises
    from maskreid_dist.files import check_writable
    from maskreid_dist.recipe import load_recipe
    from maskreid_dist.run_directory import shares_of_phases
    from maskreid_dist.training.environment import place_of_process
    from maskreid_dist.training.world import choose_device
    from maskreid_kernels.bench.figures import Machine, write_rows

    config = load_recipe(recipe, overrides or ())
    if output:
        check_writable(output)
    console = Terminal(quiet=as_json)
    with console.status("starting") as status:
        costs = measure(config, batches or [64], seconds, status.update)
    machine = Machine.here(choose_device(place_of_process()).type)
    table = Table(box=None)
    for heading in ("images", "ms", "images/s", "GPU, GB", "of it"):
        table.add_column(heading, justify="left" if heading == "of it" else "right")
    for cost in costs:
        peak = "" if cost.peak_gb is None else f"{cost.peak_gb:.1f}"
        shares = shares_of_phases(cost.row())
        table.add_row(str(cost.batch), f"{cost.step_ms:.1f}", f"{cost.images_s:.0f}", peak, shares)
    console.print(machine.line(), highlight=False)
    console.print(table)
    rows = [cost.row() for cost in costs]
    if output:
        date = datetime.date.today().isoformat()
        write_rows(output, [{"date": date, "device": machine.device, **row} for row in rows])
    finish(as_json, console, rows, promises(costs), machine)
