"""`bench gpu`: correctness and figures on a machine with a GPU, step by step, within a budget of seconds.

Needs torch, Triton, NumPy and pytest, a checkout, and neither pip nor git nor a network. Every result is
appended to OUTPUT/results.jsonl as it comes, beside what was predicted; OUTPUT/table.md is the table. A step
that raises or takes longer than its share of the budget is recorded, and the next goes on. --dry-run walks
every step at toy sizes on the CPU, in Triton's interpreter. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from ..command_line import OneLineParser
from ..figures import BenchError, Machine
from ..predictions import read_predictions
from .results import Figure, Journal
from .setting import Setting

# Seconds that each is expected to want; what one leaves is shared among those after it. Correctness first.
SECONDS = {
    "tests": 150,
    "repeats": 10,
    "agreement": 15,
    "errors": 20,
    "ceilings": 15,
    "passes": 30,
    "losses": 70,
    "symmetric": 50,
    "family": 30,
    "counts": 20,
    "crossover": 50,
    "marks": 25,
    "million": 40,
    "tiles": 40,
}
FIGURES = tuple(name for name in SECONDS if name != "tests")


class Overrun(Exception):
    """A step took longer than its share."""


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float
    measure: Callable[[Setting], Iterator[Figure]]


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 1 when a step fails or a promise is missed (not in a dry run). Raises BenchError without a
    GPU."""
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"{', '.join(SECONDS)}; figures: all but tests; default: all"
    )
    parser.add_argument("--dry-run", action="store_true", help="toy sizes in the interpreter, without a GPU")
    parser.add_argument("--budget", type=float, help="seconds for all steps (530; dry: 3600)")
    parser.add_argument("--output", type=Path, help="folder (gpu-results; $OUT where it is set)")
    options = parser.parse_args(arguments)
    names = [
        name for word in options.steps or SECONDS for name in (FIGURES if word == "figures" else (word,))
    ]
    if unknown := [name for name in names if name not in SECONDS]:
        raise BenchError(f"{unknown[0]}: use {', '.join(SECONDS)} or figures")
    budget: float = options.budget if options.budget is not None else 3600.0 if options.dry_run else 530.0
    if not budget > 0:
        raise BenchError(f"--budget {budget:g}: use a number of seconds above 0")
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, and for the tests too
    elif not torch.cuda.is_available():
        raise BenchError("torch finds no GPU here; --dry-run walks the steps without one")
    output = options.output or Path(os.environ.get("OUT", "gpu-results"))
    return 0 if run(steps(names), Setting(options.dry_run, output), budget) else 1


def steps(names: Sequence[str]) -> list[Step]:
    """The steps by name, in the order of SECONDS."""
    from . import ceilings, checks, choices, counts, passes, symmetric, whole

    found = {
        "tests": checks.tests,
        "repeats": checks.repeats,
        "agreement": counts.agreement,
        "errors": whole.errors,
        "ceilings": ceilings.ceilings,
        "passes": passes.passes,
        "losses": whole.losses,
        "symmetric": symmetric.symmetric,
        "family": whole.family,
        "counts": counts.counts,
        "crossover": choices.crossover,
        "marks": choices.marks,
        "million": whole.million,
        "tiles": choices.tiles,
    }
    return [Step(name, seconds, found[name]) for name, seconds in SECONDS.items() if name in names]


def run(steps: Sequence[Step], setting: Setting, budget: float) -> bool:
    """Whether every step came to its end and every promise was kept; in a dry run the promises do not
    count."""
    machine = Machine.here("cpu" if setting.dry else "cuda")
    predictions = read_predictions(machine.triton, machine.device)
    journal = Journal(setting.output, machine, predictions, setting.dry)
    print(machine.line())
    end = time.monotonic() + budget
    for place, step in enumerate(steps):
        left = sum(later.seconds for later in steps[place:])
        seconds = (end - time.monotonic()) * step.seconds / left
        begin = time.monotonic()
        _run_step(step, setting, journal, seconds)
        print(f"      {step.name}: {time.monotonic() - begin:.1f} of {seconds:.0f} s", flush=True)
        journal.write_table()
    missed = [line for line in journal.lines if not line.kept]
    failed = [line for line in missed if line.failure]
    print(f"written: {setting.output}/results.jsonl, table.md; {len(missed)} lines FAIL or MISS")
    return not (failed if setting.dry else missed)


def _run_step(step: Step, setting: Setting, journal: Journal, seconds: float) -> None:
    try:
        if seconds <= 0:
            raise Overrun
        with _alarm_after(seconds):
            for figure in step.measure(setting):
                journal.add(step.name, figure)
    except Exception as error:  # whatever a driver, a compiler or a step raises, the next one may still run
        journal.fail(step.name, _reason(error, seconds))
    finally:
        gc.collect()
        if not setting.dry and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _reason(error: BaseException, seconds: float) -> str:
    """In one line. A compiler may have wrapped the alarm into an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Overrun):
            return f"took longer than its {max(seconds, 0):.0f} s"
        cause = cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


@contextmanager
def _alarm_after(seconds: float) -> Iterator[None]:
    """Raises Overrun in the block once it has run for so long; a call into the driver has to return first."""

    def overrun(number: int, frame: FrameType | None) -> None:
        raise Overrun

    before = signal.signal(signal.SIGALRM, overrun)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
