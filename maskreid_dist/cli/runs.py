"""`maskreid runs` and `maskreid top`: how trainings stand, from their run directories."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.terminal import Terminal, say, say_json


@one_line_errors
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Directory of run directories.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List runs: state, steps, last loss, best mAP, when, and what tells their recipes apart."""
    from maskreid_dist.report.run_state import find_runs, read_run
    from maskreid_dist.report.run_view import runs_table

    found = [read_run(path) for path in find_runs(folder)]
    if as_json:
        rows = [
            {
                "run": str(run.path),
                "state": run.state,
                "status": run.exit_status,
                "step": run.step,
                "steps": run.steps,
                "loss": run.losses[-1][1] if run.losses else None,
                "best": run.best,
                "time": run.last_time.isoformat() if run.last_time else None,
                "recipe": run.recipe,
            }
            for run in found
        ]
        say_json(rows)
        return
    if not found:
        say(f"{folder.absolute()}: no runs here")
        return
    Terminal().print(runs_table(found, datetime.now(UTC)))
    if any(run.state == "saved" for run in found):
        say("saved: ended before its last step; --resume continues it")


@one_line_errors
def top(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds from one look to the next.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and leave.")] = False,
) -> None:
    """Watch a run: progress, where a step's time goes, loss, evaluations. Ctrl-C leaves; the run goes on."""
    from rich.live import Live

    from maskreid_dist.report.run_state import read_run
    from maskreid_dist.report.run_view import run_view

    console = Terminal()
    view = run_view(read_run(run), datetime.now(UTC))
    if once or not console.is_terminal:
        console.print(view, highlight=False, soft_wrap=True)
        return
    try:
        with Live(view, console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(run_view(read_run(run), datetime.now(UTC)), refresh=True)
    except KeyboardInterrupt:
        return
