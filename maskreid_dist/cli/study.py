"""`maskreid study`: recipes x seeds, resumable, side by side, with a table and what follows from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from maskreid_dist import exit_status
from maskreid_dist.cli.convert import parse_part
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.cli.quiet import quiet_libraries
from maskreid_dist.cli.study_run import StudyRun, jobs_here
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say, say_json

if TYPE_CHECKING:
    from maskreid_dist.report.study_page import StudyPage
    from maskreid_dist.study.study_file import LoadedStudy, Task
    from maskreid_dist.study.summary import Summary


@one_line_errors
def study(
    path: Annotated[
        Path, typer.Argument(metavar="STUDY", help="TOML study file.", show_default=False, dir_okay=False)
    ],
    listed: Annotated[
        bool, typer.Option("--list", help="Say what is done and how long the rest takes; run nothing.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Table and files of what is done; run nothing.")
    ] = False,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Every N-th training from the I-th, for a scheduler.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trainings side by side. Default: one a GPU; without GPUs one for every OMP_NUM_THREADS "
            "cores, or every core.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[list[str] | None, typer.Option("--row", help="Only this row; repeatable.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Only this seed; repeatable.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of results. Default: results/NAME beside the study file.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Directory of run directories.")] = Path("runs/studies"),
    html: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Assumed where no row is done. Default: 10 with a GPU, 0.01 a thread."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train anew what is done, and compare it with the results kept.")
    ] = False,
    as_json: AsJson = False,
    here: Annotated[bool, typer.Option("--here", hidden=True, help="In this process: one training.")] = False,
) -> None:
    """Train rows x seeds, each in a child process, and say which claims their figures bear out.

    What is done is kept; a training that was stopped goes on from its checkpoint. Ends with 0, with 75 when
    it was told to stop (the same command continues), with 1 or 2 when a training failed.
    """
    quiet_libraries()
    from maskreid_dist.files import check_writable
    from maskreid_dist.study.study_file import load_study

    loaded = load_study(path)
    kept = results or path.parent / "results" / loaded.study.name
    place = runs / loaded.study.name
    if sum((listed, report, again, here)) > 1:
        raise UserError("--list, --report and --again: give one of them")
    if as_json and not report:
        raise UserError("--json is what --report says, for programs: give both")
    tasks = _chosen(loaded, part, rows or (), seeds or ())
    if here:
        from maskreid_dist.study.training import run_task

        raise typer.Exit(run_task(loaded, tasks[0], place, kept))
    for folder in () if listed else (kept, place):
        check_writable(folder, folder=True)
    if html:
        check_writable(html)
    job = StudyRun(loaded, kept, place, jobs or jobs_here(len(tasks)), tflops)
    if listed:
        _list_rows(job, tasks)
        return
    status = exit_status.DONE
    if again:
        raise typer.Exit(job.run_again(tasks))
    if not report:
        status = job.run(tasks)
    _write_report(job, html, as_json)
    raise typer.Exit(status)


def _chosen(
    loaded: "LoadedStudy", part: str | None, rows: "list[str] | tuple[()]", seeds: "list[int] | tuple[()]"
) -> "list[Task]":
    """Raises UserError: a row or a seed that the study has not."""
    from maskreid_dist.study.state import part_of

    known = [row.name for row in loaded.study.rows]
    if odd := [row for row in rows if row not in known]:
        raise UserError(f"--row {odd[0]}: {loaded.path} has {', '.join(known)}")
    if odd_seeds := [seed for seed in seeds if seed not in loaded.study.seeds]:
        raise UserError(f"--seed {odd_seeds[0]}: {loaded.path} has {', '.join(map(str, loaded.study.seeds))}")
    tasks = part_of(loaded.tasks, parse_part(part) if part else None)
    return [
        task for task in tasks if (not rows or task.row.name in rows) and (not seeds or task.seed in seeds)
    ]


def _list_rows(job: "StudyRun", tasks: "list[Task]") -> None:
    """Rows, what is done of them, and what the rest takes."""
    state = job.look()
    pace = job.pace(state)
    table = Table(box=None, pad_edge=False)
    for name in ("row", "claim", "done", "to run", "minutes"):
        table.add_column(name)
    for row in job.loaded.study.rows:
        own = [task for task in tasks if task.row.name == row.name]
        done = [str(task.seed) for task in own if task.name in state.done]
        waiting = state.waiting(own)
        left = " ".join(str(task.seed) for task in waiting)
        minutes = f"{pace.minutes(state, waiting):.1f}" if waiting else ""
        if row.name in state.missing:
            left = "no shards"
        table.add_row(row.name, row.claim or "", " ".join(done), left, minutes)
    job.console.print(table)
    waiting = state.waiting(tasks)
    done_here = sum(task.name in state.done for task in tasks)
    job.say(f"{len(tasks)} trainings: {done_here} done, {len(waiting)} to run")
    if waiting:
        total = pace.minutes(state, waiting) / job.jobs
        job.say(f"about {total:.0f} minutes, {job.jobs} side by side, {pace.said}")


def _write_report(job: "StudyRun", html: Path | None, as_json: bool) -> None:
    """Table on the terminal; table.md, rows.csv and figure.png beside the results; the page."""
    from maskreid_dist.report.study_page import study_figure, write_study_page
    from maskreid_dist.study.summary import summarise
    from maskreid_dist.study.tables import content, markdown, rows_csv, study_page
    from maskreid_shards.atomic import write_atomically

    state = job.look() if job.results.is_dir() else None
    if state is None or not state.done:
        if as_json:
            say_json({"study": job.loaded.study.name, "rows": []})
        else:
            job.say("no training is done yet: no table")
        return
    summary = summarise(state)
    page = study_page(summary)
    if as_json:
        say_json(content(summary))
    else:
        _print_table(job, summary, page)
    picture = study_figure(page)
    write_atomically(job.results / "table.md", markdown(summary).encode())
    write_atomically(job.results / "rows.csv", rows_csv(summary).encode())
    write_atomically(job.results / "figure.png", picture)
    if html:
        write_study_page(html, page, picture)
    for name, place in (("table, rows and figure", job.results), ("page", html)):
        if place and not as_json:
            say(f"{name}: {place.absolute()}")


def _print_table(job: "StudyRun", summary: "Summary", page: "StudyPage") -> None:
    from maskreid_dist.study.tables import COLUMNS, SHORT

    table = Table(box=None, pad_edge=False)
    for number in SHORT:
        table.add_column(COLUMNS[number], no_wrap=number == 0)
    for row in page.rows:
        table.add_row(*(row.cells[number] for number in SHORT))
    job.console.print(table)
    job.say(summary.standing())
    for line in [*(claim.sentence() for claim in summary.judged()), *summary.to_come()]:
        job.say(line)
