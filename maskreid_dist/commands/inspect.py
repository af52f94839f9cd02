"""`maskreid verify`, `stats` and `plan`: what is in a shard folder, and what training would draw from it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.commands.failures import one_line_errors

Shards = Annotated[Path, typer.Argument(help="Folder that `maskreid convert` made.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]


@one_line_errors
def verify(
    shards: Shards,
    as_json: AsJson = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the shards.")] = 1,
) -> None:
    """Check every byte of a shard folder: exit status 0 when all is well, 1 with problems, 2 when it could not run."""
    from maskreid_dist.inspection import run_verify

    problems = run_verify(shards, workers)
    if as_json:
        names = ("shard", "key", "offset", "kind", "message")
        print(json.dumps({"problems": [{name: getattr(p, name) for name in names} for p in problems]}))
    else:
        for problem in problems:
            print(problem.message)
        print(f"{shards}: {f'{len(problems)} problems' if problems else 'all is well'}")
    raise typer.Exit(1 if problems else 0)
