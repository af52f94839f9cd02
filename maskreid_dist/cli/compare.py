"""`maskreid compare`: two runs on the same queries."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from maskreid_dist.cli.carried import carried_shards
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson, Cache, CameraIds, FiguresFile, RunOrCheckpoint
from maskreid_dist.terminal import Terminal, say, say_json

if TYPE_CHECKING:
    from maskreid_dist.evaluation.compare import Comparison


@one_line_errors
def compare(
    first: RunOrCheckpoint,
    second: Annotated[Path, typer.Argument(help="The one to compare it with.", show_default=False)],
    shards: Annotated[
        str | None,
        typer.Argument(
            help="Shards with the splits query and gallery, a folder or a URL. Default: those of the first "
            "run's recipe.",
            show_default=False,
        ),
    ] = None,
    ap: Annotated[Literal["hits", "trapezoid"], typer.Option(help="Definition of AP.")] = "hits",
    html: Annotated[
        Path | None, typer.Option(help="Write both side by side here, with ranked lists.")
    ] = None,
    output: FiguresFile = None,
    cache: Cache = None,
    cameras: CameraIds = "labels",
    as_json: AsJson = False,
) -> None:
    """Rank one gallery with two networks: differences with paired intervals, and the queries that changed
    most."""
    from maskreid_dist.evaluation.compare import Side, in_percent, write_comparison
    from maskreid_dist.evaluation.compare import compare as found_by
    from maskreid_dist.evaluation.evaluate import evaluate_checkpoint, print_table, write_json
    from maskreid_dist.files import check_writable
    from maskreid_dist.model.checkpoint import find_checkpoint
    from maskreid_dist.model.pretrained import is_pretrained
    from maskreid_shards import open_shards
    from maskreid_shards.shown import without_secrets

    for path in (html, output):
        if path:
            check_writable(path)
    console = Terminal(quiet=as_json)
    configs = [find_checkpoint(run)[0].config for run in (first, second)]  # before the long work
    if shards is None:
        config = configs[0]
        named = carried_shards() if is_pretrained(first) else config.run.evaluate_shards or config.data.shards
        console.print(f"shards of {first}: {without_secrets(named)}", soft_wrap=True, highlight=False)
        shards = named
    opened = open_shards(shards, cache=cache)
    sides = [Side(*evaluate_checkpoint(run, opened, console, ap, cameras)) for run in (first, second)]
    found = found_by(sides[0], sides[1], opened)
    names = ("first", "second")  # runs may have one name
    print_table(
        console,
        [replace(side.ranked, name=f"{n}: {side.ranked.name}") for n, side in zip(names, sides, strict=True)],
    )
    console.print(_table(found))
    console.print(
        "95 % intervals: queries resampled 1000 times, the same for both; of other queries of these persons, "
        "not of another training",
        highlight=False,
    )
    figures = {"cameras": cameras, "ap": ap, **in_percent(found)}
    if as_json:
        say_json(figures)
    if output:
        write_json(output, figures)
    if html:
        write_comparison(html, found, opened, cameras)
    for name, path in (("figures", output), ("page", html)):
        if path and not as_json:
            say(f"{name}: {path.absolute()}")


def _table(found: "Comparison") -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("second - first, points", "", "interval", ""):
        table.add_column(name, justify="right" if name == "" else "left")
    for name, one in found.differences.items():
        low, high = one.interval
        table.add_row(
            name,
            f"{100 * one.value:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            "" if one.clear else "may be chance",
        )
    return table
