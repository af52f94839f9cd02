"""`bench ahead-of-time`, `make kernels-report`: what the compiler says of every Triton program, and predicted
times.

Prints a table per target and exits with status 1 when a limit is broken (shared memory, the matrix
instruction, an atomic on floats). The times are a PREDICTION from instruction counts and traffic
(predict.py): nothing has run on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from ..triton_tiles import INTERPRETED
from .aot import TARGETS, Compiled, Job, compile_all, jobs, walks_tiles
from .command_line import OneLineParser
from .figures import BenchError, markdown_table, write_whole
from .predict import CARDS, L2_BYTES_PER_SECOND, REFILL_CLOCKS, WARP_INSTRUCTIONS, predict
from .predicted_figures import chunks_of, predicted_figures
from .predictions import RESULTS, write_predictions

SHAPES = ((65536, 65536, 2048), (8192, 65536, 256), (65536, 65536, 256))


def intensity(program: Compiled) -> float:
    """FLOP per byte that a tile loads; anchors that stay on the chip (the tile's depth is all of D) are not
    counted."""
    block_m, block_n, block_d = program.tile
    resident = block_d >= program.job.columns
    loaded = (block_n if resident else block_m + block_n) * (2 if program.job.preset == "bf16" else 4)
    return 2 * block_m * block_n / loaded


def table(name: str, programs: Sequence[Compiled]) -> list[str]:
    """What the binaries for one target say."""
    target = TARGETS[name]
    missing = ", ".join(target.missing_presets)
    unit = "spilled registers" if target.amd else "spilled bytes"
    shared = f"shared KB of {target.shared_limit >> 10}"
    headings = ("program", "preset", "D", "tile", "registers", unit, shared, "matrix", "FLOP/byte")
    rows = []
    for one in programs:
        tile = "x".join(str(side) for side in one.tile)
        of_tile = (
            (one.job.preset, tile, one.matrix, f"{intensity(one):.0f}") if one.matrix_program else [""] * 4
        )
        preset, shape, matrix, per_byte = of_tile
        sizes = (str(one.registers), str(one.spills), f"{one.shared / 1024:.0f}")
        rows.append((one.program, preset, str(one.job.columns), shape, *sizes, matrix, per_byte))
    absent = [f"Not available there: {missing}.", ""] if missing else []
    return [f"## {name}", "", *absent, *markdown_table(headings, rows), ""]


def predictions(programs: Sequence[Compiled]) -> list[str]:
    """One pass over the tiles of each program and shape, by term."""
    card = CARDS["H200"]
    lines = [
        "## Predicted, not measured: one pass over the tiles on an H200",
        "",
        f"From sm_90 machine code: {card.processors} processors at {card.clock_hz / 1e9:.2f} GHz (the clock "
        f"at which they give {card.flops / 1e12:.0f} TFLOP/s in bfloat16), {WARP_INSTRUCTIONS} warp "
        f"instructions a clock, {card.bytes_per_second / 1e12} TB/s from memory, "
        f"{L2_BYTES_PER_SECOND / 1e12} TB/s from the L2 cache (assumed), {REFILL_CLOCKS} clocks until a "
        "tile's first",
        "loads arrive (assumed). One term alone, ms: the products, the instructions of the loop over D, L2, "
        "memory, the rest of the tiles; and together. No tile has recorded pairs here. Waiting for a launch "
        "is not in it.",
        "",
    ]
    headings = (
        "program",
        "preset",
        "M",
        "N",
        "D",
        "products",
        "loop",
        "L2",
        "memory",
        "rest",
        "together",
        "ratio",
    )
    rows = []
    for shape in SHAPES:
        for one in programs:
            # One compiled at 256 columns that takes them in steps serves wider rows too.
            serves = one.job.columns == shape[2] or one.tile[2] < one.job.columns == 256
            if one.per_tile and serves:
                found = predict(one, *shape, card, chunks=chunks_of(one, shape[0], card))
                terms = (found.products, found.instructions, found.l2, found.memory, found.rest, found.total)
                cells = [f"{value:.2f}" for value in (*terms, found.total / found.products)]
                rows.append((one.program, one.job.preset, *map(str, shape), *cells))
    return [*lines, *markdown_table(headings, rows), ""]


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 1 when a limit is broken. Raises BenchError where programs are interpreted."""
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="write the report here as Markdown")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--predictions", nargs="?", type=Path, const=RESULTS, metavar="FOLDER",
        help="only predict the GPU program's figures, for this Triton, into predictions.json and .md "
        "(kernels/bench/results); those for other versions stay",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if INTERPRETED:
        raise BenchError("TRITON_INTERPRET is set: programs are interpreted, not compiled; unset it")
    if options.predictions:
        return _predict(options.predictions, options.processes)
    chosen = options.target or list(TARGETS)
    compiled = _compile(list(jobs(chosen)), options.processes)
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    text = [f"# Triton programs ahead of time, {datetime.date.today()}", ""]
    text += [f"{versions}. Not yet run on a GPU.", ""]
    for name in chosen:
        text += table(name, [one for one in compiled if one.job.target == name])
    text += predictions([one for one in compiled if one.job.target == "sm_90"])
    problems = [problem for one in compiled for problem in one.problems]
    spilling = sum(one.spills > 0 for one in compiled)
    text += [f"{len(compiled)} programs, {spilling} of them spill, {len(problems)} break a limit."]
    text += [f"- {problem}" for problem in problems]
    report = "\n".join(text) + "\n"
    if options.output:
        write_whole(options.output, report.encode())
    print(report)
    return 1 if problems else 0


def _compile(work: Sequence[Job], processes: int) -> list[Compiled]:
    compiled = []
    for number, found in enumerate(compile_all(work, processes), 1):
        compiled.append(found)
        print(f"\r{number} of {len(work)} compiled", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return compiled


def _predict(folder: Path, processes: int) -> int:
    work = [job for job in jobs(("sm_90",), presets=("bf16",)) if walks_tiles(job)]
    compiled = _compile(work, processes)
    figures = {card: predicted_figures(compiled, CARDS[card]) for card in CARDS}
    write_predictions(folder, triton.__version__, figures)
    print(
        f"{len(figures['H100'])} figures predicted for triton {triton.__version__}: {folder}/predictions.md"
    )
    return 0
