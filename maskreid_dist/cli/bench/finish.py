"""How a benchmark ends."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from maskreid_dist.terminal import Terminal, say_json

if TYPE_CHECKING:
    from maskreid_kernels.bench.figures import Machine, Promise


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
