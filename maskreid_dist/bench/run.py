"""One run of `maskreid bench loss`: choose the cases, measure them, print, write."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from maskreid_dist.bench import report, targets
from maskreid_dist.bench.loss import KERNELS, Budget, Job, Record, run_job
from maskreid_dist.errors import UserError
from maskreid_dist.files import write_atomically


@dataclass(frozen=True)
class Wanted:
    """The options of the command; empty tuples mean their defaults."""

    device: str
    preset: str
    kernels: tuple[str, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    images: tuple[int, ...]
    dtype: str
    ranks: int
    compiled: bool
    memory: bool
    seconds: float
    threads: int | None


def bench_loss(wanted: Wanted, output: Path | None, console: Console) -> bool:
    """Whether every promise was kept (True where none was asked about). Raises UserError for what cannot be measured."""
    for name in wanted.kernels:
        if name not in KERNELS:
            raise UserError(f"--kernel {name}: use one of {', '.join(KERNELS)}")
    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    if wanted.device == "cuda" and wanted.ranks > 1:
        raise UserError("--ranks: the ranks are gloo processes; use --device cpu")
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    machine = report.Machine.here(wanted.device)
    console.print(
        f"{machine.device}, {machine.threads} threads, torch {machine.torch}, commit {machine.commit}"
    )
    records: list[Record] = []
    for job in _jobs(wanted):
        budget = Budget.of(wanted.device, wanted.seconds)
        records += run_job(
            job, device=wanted.device, budget=budget, compiled=wanted.compiled, say=console.print
        )
        if output:  # after every case: a stopped run keeps what it measured
            report.write_csv(output / f"{_stem(wanted, machine)}.csv", records, machine)
    _print(records, console)
    promises = targets.cpu_promises(records) if wanted.preset == "promises" else []
    for promise in promises:
        console.print(promise.line(), highlight=False)
    if output:
        stem = _stem(wanted, machine)
        pictures = report.write_plots(output, stem, records)
        notes = [f"- {promise.line()}" for promise in promises]
        text = report.markdown(records, machine, notes, pictures)
        write_atomically(output / f"{stem}.md", text.encode())
        console.print(f"written: {output / stem}.csv, .md, {len(pictures)} plots")
    return all(promise.kept for promise in promises)


def _jobs(wanted: Wanted) -> list[Job]:
    if wanted.preset == "promises":
        if wanted.device != "cpu":
            raise UserError("--preset promises is about the CPU; on a GPU use `make gpu`")
        timed = [Job(case, memory=False) for case in [*targets.small_cases(), *targets.large_cases()]]
        return timed + [Job(case, timed=False, only=("maskreid auto",)) for case in targets.memory_cases()]
    cases = targets.grid(
        wanted.kernels or ("ranking", "batch_hard"),
        wanted.rows or targets.ALL_ROWS,
        wanted.columns or targets.ALL_COLUMNS,
        wanted.images or (4, 16),
        wanted.dtype,
    )
    memory = wanted.memory and wanted.ranks == 1
    return [Job(replace(case, ranks=wanted.ranks), memory=memory) for case in cases]


def _stem(wanted: Wanted, machine: report.Machine) -> str:
    over = f"-{wanted.ranks}ranks" if wanted.ranks > 1 else ""
    return f"{machine.date}-{wanted.device}-{wanted.preset}{over}"


def _print(records: list[Record], console: Console) -> None:
    """A small table for each case."""
    by_case: dict[str, list[list[str]]] = {}
    for case, _, *cells in report.table(records):
        by_case.setdefault(case, []).append(cells)
    for case, rows in by_case.items():
        table = Table(title=case, title_justify="left", title_style="italic", box=None)
        for number, heading in enumerate(report.COLUMNS[2:]):
            table.add_column(heading, justify="right" if 1 <= number <= 6 else "left")
        for cells in rows:
            table.add_row(*cells, style="bold" if cells[0].startswith("maskreid auto") else "")
        console.print(table)
