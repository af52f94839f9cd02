"""`maskreid merge`: finished shard folders as one training set."""

from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.errors import UserError
from maskreid_dist.progress import progress_bar
from maskreid_dist.terminal import say, say_json
from maskreid_shards import merge_shards


@one_line_errors
def merge(
    out: Annotated[Path, typer.Argument(help="New folder for the shards.", show_default=False)],
    parts: Annotated[
        list[str],
        typer.Argument(metavar="NAME=SHARDS...", help="Finished folders, or URLs, such as a=shards/a."),
    ],
    as_json: AsJson = False,
) -> None:
    """The train splits of finished shards as one, with identities and cameras of their own: images and masks
    are copied, not converted again."""
    folders: dict[str, Path | str] = {}
    for part in parts:
        name, equals, location = part.partition("=")
        if not (name and equals and location):
            raise UserError(f"{part!r}: write NAME=SHARDS, such as market=shards/market")
        if name in folders:
            raise UserError(f"{part!r}: the name {name!r} was given twice")
        folders[name] = location
    with progress_bar("merging") as progress:
        report = merge_shards(folders, out, progress=progress)
    if as_json:
        say_json(report.content())
    else:
        say("\n".join(report.lines()))
