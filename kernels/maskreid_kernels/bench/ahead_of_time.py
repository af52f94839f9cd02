"""`bench ahead-of-time`, `make kernels-report`: what the compiler says of every Triton program, and a predicted time.

Prints a table per target and exits with status 1 when a limit is broken (shared memory, the matrix instruction, an
atomic on floats). The times are a PREDICTION from instruction counts and the roofline: nothing has run on a GPU.
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
from .aot import TARGETS, Compiled, compile_all, jobs
from .command_line import OneLineParser
from .figures import BenchError

# An H200: processors, the bf16 rate and copy bandwidth that large products and copies were seen to reach, and what a
# processor issues per clock: warp instructions, and lanes of each unit (Hopper tuning guide, CUDA C++ guide 16.3).
PROCESSORS = 132
BF16_FLOPS = 790e12
BYTES_PER_SECOND = 4.3e12
FLOP_PER_CLOCK = {"bf16": 4096, "bf16x3": 4096 / 3, "tf32": 2048, "tf32x3": 2048 / 3, "ieee": 256}
CLOCK_HZ = BF16_FLOPS / (PROCESSORS * FLOP_PER_CLOCK["bf16"])  # at which the tensor cores give BF16_FLOPS
WARP_INSTRUCTIONS = 4
INTEGER_WARPS, SPECIAL_WARPS = 2, 0.5  # 64 lanes of integers, 16 of exponentials
INTEGER = ("IADD3", "LOP3", "IMNMX", "VIMNMX", "VIMNMX3", "SHF", "LEA", "ISETP", "SEL", "VIADD")
SHAPES = ((65536, 65536, 2048), (8192, 65536, 256), (65536, 65536, 256))


def issue_clocks(counts: dict[str, int], warps: int) -> float:
    """Clocks of one processor to issue the instructions for all warps: the slowest of the three pipes."""
    integer = sum(count for name, count in counts.items() if name in INTEGER)
    return warps * max(
        sum(counts.values()) / WARP_INSTRUCTIONS,
        integer / INTEGER_WARPS,
        counts.get("MUFU", 0) / SPECIAL_WARPS,
    )


def predict_ms(program: Compiled, rows: int, places: int, columns: int) -> tuple[float, float]:
    """(ms of one pass over rows x places, the same for the tensor cores or the copy of the operands alone).

    A step over D takes the longer of its products and its instructions; what follows a tile's products is added, for
    one program per processor overlaps nothing. Traffic beyond one read of both operands is taken to hit the L2 cache.
    """
    block_m, block_n, block_d = program.tile
    preset = program.job.preset
    tiles = -(-rows // block_m) * -(-places // block_n)
    slabs = -(-columns // block_d)
    products = 2 * block_m * block_n * block_d / FLOP_PER_CLOCK[preset]
    step = max(products, issue_clocks(dict(program.per_slab), program.warps))
    rest = issue_clocks(dict(program.per_tile), program.warps)
    seconds = tiles * (slabs * step + rest) / PROCESSORS / CLOCK_HZ
    floor = tiles * slabs * products / PROCESSORS / CLOCK_HZ
    copied = (rows + places) * columns * (2 if preset == "bf16" else 4) / BYTES_PER_SECOND
    return 1e3 * max(seconds, copied), 1e3 * max(floor, copied)


def intensity(program: Compiled) -> float:
    """FLOP per byte that a tile loads; anchors that stay on the chip (the tile's depth is all of D) are not counted."""
    block_m, block_n, block_d = program.tile
    resident = block_d >= program.job.columns
    loaded = (block_n if resident else block_m + block_n) * (2 if program.job.preset == "bf16" else 4)
    return 2 * block_m * block_n / loaded


def table(name: str, programs: list[Compiled]) -> list[str]:
    target = TARGETS[name]
    missing = ", ".join(target.missing_presets)
    lines = [f"## {name}", "", *([f"Not available there: {missing}.", ""] if missing else [])]
    unit = "spilled registers" if target.amd else "spilled bytes"
    lines += [
        f"| program | preset | D | tile | registers | {unit} | shared KB of {target.shared_limit >> 10} | matrix | FLOP/byte |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for program in programs:
        matrix = program.matrix_program
        tile = "x".join(str(side) for side in program.tile) if matrix else ""
        lines.append(
            f"| {program.program} | {program.job.preset if matrix else ''} | {program.job.columns} | {tile} | {program.registers} | "
            f"{program.spills} | {program.shared / 1024:.0f} | {program.matrix} | {intensity(program):.0f} |"
            if matrix
            else f"| {program.program} | | {program.job.columns} | | {program.registers} | {program.spills} | "
            f"{program.shared / 1024:.0f} | | |"
        )
    return [*lines, ""]


def predictions(programs: list[Compiled]) -> list[str]:
    lines = [
        "## Predicted, not measured: one pass over the tiles on an H200",
        "",
        f"From sm_90 machine code: {PROCESSORS} processors at {CLOCK_HZ / 1e9:.2f} GHz (the clock at which they give "
        f"{BF16_FLOPS / 1e12:.0f} TFLOP/s in bfloat16), {WARP_INSTRUCTIONS} warp instructions per clock, of which at most "
        f"{INTEGER_WARPS} integer and {SPECIAL_WARPS} exponential; {BYTES_PER_SECOND / 1e12} TB/s. Tiles without positives "
        "or recorded pairs; L2 traffic, launch and waiting for memory are not in it, so a real time will be longer.",
        "",
        "| program | preset | M | N | D | predicted ms | products alone ms | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows, places, columns in SHAPES:
        for program in programs:
            # One compiled at 256 columns that takes them in steps serves wider rows too.
            serves = program.job.columns == columns or program.tile[2] < program.job.columns == 256
            if program.per_tile and serves:
                own, floor = predict_ms(program, rows, places, columns)
                lines.append(
                    f"| {program.program} | {program.job.preset} | {rows} | {places} | {columns} | {own:.2f} | "
                    f"{floor:.2f} | {own / floor:.2f} |"
                )
    return [*lines, ""]


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 1 when a limit is broken. Raises BenchError where programs are interpreted."""
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="write the report here as Markdown")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if INTERPRETED:
        raise BenchError("TRITON_INTERPRET is set: programs are interpreted, not compiled; unset it")
    chosen = options.target or list(TARGETS)
    work = list(jobs(chosen))
    compiled = []
    for number, found in enumerate(compile_all(work, options.processes), 1):
        compiled.append(found)
        print(f"\r{number} of {len(work)} compiled", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    text = [
        f"# Triton programs ahead of time, {datetime.date.today()}",
        "",
        f"{versions}. Not yet run on a GPU.",
        "",
    ]
    for name in chosen:
        text += table(name, [one for one in compiled if one.job.target == name])
    text += predictions([one for one in compiled if one.job.target == "sm_90"])
    problems = [problem for one in compiled for problem in one.problems]
    spilling = sum(one.spills > 0 for one in compiled)
    text += [f"{len(compiled)} programs, {spilling} of them spill, {len(problems)} break a limit."]
    text += [f"- {problem}" for problem in problems]
    report = "\n".join(text) + "\n"
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report)
    print(report)
    return 1 if problems else 0
