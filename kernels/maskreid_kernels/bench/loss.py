"""`bench loss`: choose the cases, measure them, print, write."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import report, targets
from .activity import ACTIVE_FROM
from .command_line import OneLineParser
from .figures import BenchError, Machine, aligned, json_line, results, write_whole
from .records import KERNELS, Budget, Job, Record, as_row, run_job


@dataclass(frozen=True)
class LossBenchOptions:
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
    max_autotune: bool
    memory: bool
    seconds: float
    threads: int | None


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 1 when a promise is missed. Raises BenchError for what cannot be measured."""
    options = vars(_parser(program).parse_args(arguments))
    output: Path | None = options.pop("output")
    as_json: bool = options.pop("json")
    options |= {name: tuple(options[name] or ()) for name in ("kernels", "rows", "columns", "images")}
    return 0 if bench_loss(LossBenchOptions(**options), output, as_json) else 1


def _parser(program: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=program,
        description="Time, peak memory and gradient error of the losses, beside eager, lean and library "
        "forms of them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, flag = parser.add_argument, argparse.BooleanOptionalAction
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    add(
        "--preset", choices=("promises", "grid"), default="grid",
        help="promises: the figures of kernels/README.md, with PASS or MISS; grid: the options below",
    )  # fmt: skip
    add("--kernel", dest="kernels", action="append", help="loss; repeatable (ranking, batch_hard)")
    add("--rows", type=_from(1), action="append", help="N, repeatable (512 to 131072)")
    add("--columns", type=_from(1), action="append", help="D, repeatable (256, 512, 2048)")
    add("--images", type=_from(1), action="append", help="K, repeatable (4, 16)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the rows")
    add("--ranks", type=_from(1), default=1, help="N rows over this many gloo ranks of one thread")
    add("--compiled", action=flag, default=False, help="measure torch.compile of the eager form too")
    add("--max-autotune", action="store_true", help="let torch.compile search for minutes a case")
    add("--memory", action=flag, default=True, help="measure peak memory, each in a process of its own")
    add("--seconds", type=float, default=10.0, help="time for the rounds of one case")
    add("--threads", type=_from(1), help="torch's threads (all cores)")
    add("--output", type=Path, help="folder for the CSV, the plots and the report")
    add("--json", action="store_true", help="JSON on standard output, nothing else")
    return parser


def _from(least: int) -> "type[int]":
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"number from {least}"  # what argparse calls it when it refuses a value
    return number  # type: ignore[return-value]  # any callable of a text is a type to argparse


def bench_loss(options: LossBenchOptions, output: Path | None, as_json: bool = False) -> bool:
    """Whether every promise was kept (True where none was asked about). Raises BenchError for what cannot be
    measured."""
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = Machine.here(options.device)
    say = _nothing if as_json else _say
    say(machine.line())
    records: list[Record] = []
    for job in _jobs(options):
        budget = Budget.of(options.device, options.seconds)
        records += run_job(
            job, device=options.device, budget=budget, compiled=options.compiled, say=say,
            max_autotune=options.max_autotune,
        )  # fmt: skip
        if output:  # after every case: a stopped run keeps what it measured
            report.write_csv(output / f"{_stem(options, machine)}.csv", records, machine)
    say(_tables(records))
    promises = targets.cpu_promises(records) if options.preset == "promises" else []
    for promise in promises:
        say(promise.line())
    if output:
        stem = _stem(options, machine)
        pictures = report.write_plots(output, stem, records)
        notes = [f"- {promise.line()}" for promise in promises]
        text = report.markdown(records, machine, notes, pictures)
        write_whole(output / f"{stem}.md", text.encode())
        say(f"written: {output / stem}.csv, .md, {len(pictures)} plots")
    if as_json:
        print(json_line(results([as_row(record) for record in records], promises, machine)))
    return all(promise.kept for promise in promises)


def _check(options: LossBenchOptions) -> None:
    for name in options.kernels:
        if name not in KERNELS:
            raise BenchError(f"--kernel {name}: use one of {', '.join(KERNELS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no GPU here; use --device cpu")
    if options.device == "cuda" and options.ranks > 1:
        raise BenchError("--ranks: the ranks are gloo processes; use --device cpu")
    if options.preset == "promises" and options.device != "cpu":
        raise BenchError("--preset promises is about the CPU; on a GPU use `make gpu`")
    if not options.seconds > 0:
        raise BenchError(f"--seconds {options.seconds}: use a number above 0")


def _say(text: str) -> None:
    print(text, flush=True)


def _nothing(text: str) -> None:
    pass


def _jobs(options: LossBenchOptions) -> list[Job]:
    if options.preset == "promises":
        cases = [*targets.small_cases(), *targets.large_cases()]
        jobs = [Job(case, memory=False) for case in cases]
        jobs += [Job(case, timed=False, only=("maskreid auto",)) for case in targets.memory_cases()]
        return [replace(job, active_from=ACTIVE_FROM) for job in jobs]
    cases = targets.grid(
        options.kernels or ("ranking", "batch_hard"),
        options.rows or targets.ALL_ROWS,
        options.columns or targets.ALL_COLUMNS,
        options.images or (4, 16),
        options.dtype,
    )
    memory = options.memory and options.ranks == 1
    return [Job(replace(case, ranks=options.ranks), memory=memory) for case in cases]


def _stem(options: LossBenchOptions, machine: Machine) -> str:
    over = f"-{options.ranks}ranks" if options.ranks > 1 else ""
    return f"{machine.date}-{options.device}-{options.preset}{over}"


def _tables(records: list[Record]) -> str:
    """A small one for each case."""
    by_case: dict[str, list[list[str]]] = {}
    for case, active, _, *cells in report.table(records):
        by_case.setdefault(f"{case}, {active} of the anchors active", []).append(cells)
    return "\n".join(f"\n{case}\n{aligned([report.COLUMNS[3:], *rows])}" for case, rows in by_case.items())
