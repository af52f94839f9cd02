"""Every Triton program and precision preset compiled ahead of time for GPUs that are not here.

No driver is needed. From each binary: registers, spills, shared memory, the matrix instruction, atomics on
floats, and for sm_90 the instructions of the loop over tiles. Must run in a process without TRITON_INTERPRET.
`ahead_of_time.py` prints it all (`make kernels-report`). Nothing here has run on a GPU.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from ..precision import PRECISIONS
from ..triton_tiles import INTERPRETED, Chip, Variant

# Where the programs of each loss are launched from, and those that all losses share.
MODULES = {
    "batch_hard": "batch_hard.triton",
    "ranking": "ranking.triton",
    "logsumexp": "logsumexp.triton",
    "rows": "fused_rows",
    "retrieval": "retrieval_counts.triton",
}
CONSUMERS = 2  # times its num_warps, a program with specialised warps multiplies
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOAT_ATOMIC = re.compile(
    r"(?:red|atom)\.[\w.:]*\.(?:f16|f32|f64|bf16|f16x2|bf16x2)\b|\w+_atomic_(?:pk_)?add_(?:f|bf)\w+"
)
INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)(?:[^;]*?\b0x([0-9a-f]+)\s*;)?"
)


@dataclass(frozen=True)
class Target:
    """A GPU to compile for; `shared_limit`: bytes of shared memory that one program may take; `chip`: see
    `tile_shape`."""

    gpu: GPUTarget
    shared_limit: int
    matrix_instruction: str
    chip: Chip = "large"
    missing_presets: tuple[str, ...] = ()

    @property
    def amd(self) -> bool:
        return bool(self.gpu.backend == "hip")


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10, "mma.sync"),
    # Consumer and workstation chips of that generation and the next ones: 99 KB.
    "sm_89": Target(GPUTarget("cuda", 89, 32), 99 << 10, "mma.sync", chip="small"),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10, "wgmma", chip="wide"),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10, "tcgen05", chip="rows"),
    # AMD's compiler has no tf32x3.
    "gfx942": Target(
        GPUTarget("hip", "gfx942", 64), 64 << 10, "mfma", chip="small", missing_presets=("tf32x3",)
    ),
}


@dataclass(frozen=True)
class Job:
    """One program to compile: the `index`-th variant of a loss at `columns` columns and a preset, for a
    target."""

    target: str
    loss: str
    columns: int
    preset: str
    index: int


@dataclass(frozen=True)
class Compiled:
    """What the binary of a job says. `spills`: bytes of stack (NVIDIA) or spilled registers (AMD), per
    thread.

    `matrix`: its matrix instruction, "" without one. `atomics`: atomic operations on floats. `per_slab`,
    `per_tile`: instructions by opcode (sm_90 only), of one step over D and of the rest of one tile, without
    branches that a tile may skip; `per_marks`: of the branch that records pairs (it stores to memory).
    `failure`: the compiler's first line where it refused.
    """

    job: Job
    program: str
    matrix_program: bool
    tile: tuple[int, int, int]
    registers: int = 0
    spills: int = 0
    shared: int = 0
    matrix: str = ""
    atomics: tuple[str, ...] = ()
    warps: int = 4
    per_slab: tuple[tuple[str, int], ...] = ()
    per_tile: tuple[tuple[str, int], ...] = ()
    per_marks: tuple[tuple[str, int], ...] = ()
    failure: str = ""

    @property
    def problems(self) -> list[str]:
        """One line per limit that is broken; empty when all is well."""
        target = TARGETS[self.job.target]
        where = f"{self.job.target} {self.program} {self.job.preset} D={self.job.columns}"
        found = [f"{where}: {self.failure}"] if self.failure else []
        if self.shared > target.shared_limit:
            found.append(f"{where}: {self.shared} bytes of shared memory, the limit is {target.shared_limit}")
        found += [f"{where}: an atomic on floats, {name}" for name in self.atomics]
        # ieee on float32 has no matrix instruction on NVIDIA, and AMD emulates bf16x3 with the bfloat16 one.
        wants_matrix = self.matrix_program and (self.job.preset == "bf16" or target.amd)
        if wants_matrix and not self.failure and self.matrix != target.matrix_instruction:
            found.append(f"{where}: no {target.matrix_instruction}")
        return found


def variants(loss: str, columns: int, preset: str, target: Target) -> list[Variant]:
    """A loss's programs as `columns` columns under a preset launch them on a target."""
    module = importlib.import_module(f"maskreid_kernels.{MODULES[loss]}")
    found: list[Variant] = module.variants(columns, preset, target.chip)
    return found


def jobs(
    targets: Iterable[str] = TARGETS,
    columns: Iterable[int] = (256, 2048),
    presets: Iterable[str] = PRECISIONS,
) -> Iterator[Job]:
    """Every program of every loss; presets a target lacks are left out (`Target.missing_presets` names
    them)."""
    columns, presets = tuple(columns), tuple(presets)
    seen_of: dict[tuple[str, str], list[Variant]] = {}
    for name in targets:
        for loss in MODULES:
            for width in columns:
                for preset in presets:
                    if preset not in TARGETS[name].missing_presets:
                        seen: list[Variant] = seen_of.setdefault((name, loss), [])
                        for index, variant in enumerate(variants(loss, width, preset, TARGETS[name])):
                            if variant not in seen:  # many do not depend on the preset, or on the width
                                yield Job(name, loss, width, preset, index)
                            seen.append(variant)


def walks_tiles(job: Job) -> bool:
    """Whether the job's program multiplies tiles: only of those are times predicted."""
    return _multiplies(variants(job.loss, job.columns, job.preset, TARGETS[job.target])[job.index].options)


def _multiplies(options: dict[str, Any]) -> bool:
    return "DOT" in options or "STAGES" in options


def compile_all(work: Iterable[Job], processes: int) -> Iterator[Compiled]:
    """Compile in parallel, in order. Raises RuntimeError where programs are interpreted instead."""
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: programs are interpreted, not compiled; unset it")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(compile_job, work)


def compile_job(job: Job) -> Compiled:
    """Compile one program and read its binary."""
    target = TARGETS[job.target]
    variant = variants(job.loss, job.columns, job.preset, target)[job.index]
    name = f"{job.loss}.{variant.program.fn.__name__.removesuffix('_program')}"
    name += " unbounded" if variant.options.get("BOUNDED") is False else ""
    name += " raw" if "inverse_ptr" in variant.options else ""  # rows that are not normalised
    name += " circle" if variant.options.get("CIRCLE") else ""
    name += " exact" if variant.options.get("EXACT") else ""  # rows that are not normalised
    name += " upper" if "shift_ptr" in variant.options else ""  # after a symmetric pass
    name += " of keys" if "best_place_ptr" in variant.options else ""  # after a symmetric pass
    options = dict(variant.options)
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages") if key in options}
    tile = tuple(options.get(key, 1) for key in ("BLOCK_M", "BLOCK_N", "BLOCK_D"))
    common = (job, name, _multiplies(options), (tile[0], tile[1], tile[2]))
    places = {argument: (place,) for place, argument in enumerate(variant.program.arg_names)}
    # As a launch on torch's memory: pointers and row lengths that are multiples of 16 are known as such.
    aligned = [key for key, kind in variant.types.items() if kind.startswith("*") or key == "D"]
    source = (GluonASTSource if variant.program.is_gluon() else ASTSource)(
        variant.program,
        {key: variant.types.get(key, "constexpr") for key in variant.program.arg_names},
        constexprs={places[key]: value for key, value in options.items()},
        attrs={places[key]: [["tt.divisibility", 16]] for key in aligned},
    )
    try:
        binary = triton.compile(source, target=target.gpu, options=launch)
    except Exception as error:  # the compiler's own errors have no common type
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Compiled(*common, failure=reason[0])
    text = binary.asm["amdgcn" if target.amd else "ptx"]
    matrix = target.matrix_instruction if target.matrix_instruction in text else ""
    if not matrix and "mma.sync" in text:
        matrix = "mma.sync"
    atomics = tuple(sorted(set(FLOAT_ATOMIC.findall(text))))
    if target.amd:
        registers = _number(text, r"\.vgpr_count:\s*(\d+)")
        spills, code = _number(text, r"\.vgpr_spill_count:\s*(\d+)"), ""
    else:
        registers, spills, code = _read_cubin(binary.asm["cubin"], job.target == "sm_90")
    walks = 2 if "side" in variant.types else 1 if "tiles_per_chunk" in variant.types else 0
    if variant.program.is_gluon():
        code, walks = _first_consumer(code), 1
    slab, rest, marks = _tile_loop(code, walks)
    return Compiled(
        *common,
        registers,
        spills,
        binary.metadata.shared,
        matrix,
        atomics,
        launch["num_warps"] * (CONSUMERS if variant.program.is_gluon() else 1),
        tuple(sorted(slab.items())),
        tuple(sorted(rest.items())),
        tuple(sorted(marks.items())),
    )


def _read_cubin(cubin: bytes, machine_code: bool) -> tuple[int, int, str]:
    """(registers, bytes of stack, machine code where asked for)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", str(path))
        code = _run("cuobjdump", "-sass", str(path)) if machine_code else ""
    return _number(usage, r"REG:(\d+)"), _number(usage, r"STACK:(\d+)"), code


def _first_consumer(code: str) -> str:
    """Of specialised warps' machine code the loop over tiles of those that multiply and come first."""
    found = list(INSTRUCTION.finditer(code))
    first = next((int(one[1], 16) for one in found if one[2] == "HGMMA"), 0)
    jumps = [(int(one[3], 16), int(one[1], 16)) for one in found if one[2] == "BRA" and one[3]]
    around = sorted((at - to, to, at) for to, at in jumps if to < first < at)
    if len(around) < 2:
        return ""
    _, begin, end = around[1]  # the next one around the loop over D
    span = {int(one[1], 16): one.span() for one in found}
    return code[span[begin][0] : span[end][1]]


def _tile_loop(code: str, walks: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Instructions by opcode of the loop over D around the matrix instruction, of the rest of one tile, and
    of skipped branches with a store in them.

    walks: 1, a program has a loop over tiles; 2, and one over rows of tiles around it; 0, it is one tile.
    """
    found = [(int(at, 16), opcode, int(to, 16) if to else -1) for at, opcode, to in INSTRUCTION.findall(code)]
    matrix = [at for at, opcode, _ in found if opcode == "HGMMA"]
    if not matrix:
        return Counter(), Counter(), Counter()
    jumps = [(at, to) for at, opcode, to in found if opcode == "BRA" and to >= 0]
    loops = sorted((at - to, to, at) for at, to in jumps if to < matrix[0] and at > matrix[-1])
    if not walks:
        loops.append((found[-1][0], found[0][0], found[-1][0]))
    if walks == 2:
        loops = loops[:-1]
    if not loops:
        return Counter(), Counter(), Counter()
    (_, slab_from, slab_to), (_, tile_from, tile_to) = loops[0], loops[-1]
    nested = len(loops) > 1
    skipped = [
        (at, to)
        for at, to in jumps
        if tile_from <= at < to <= tile_to and not any(at < place < to for place in matrix)
    ]
    stores = [at for at, opcode, _ in found if opcode == "STG"]
    marking = [(at, to) for at, to in skipped if any(at < place < to for place in stores)] if walks else []
    slab, rest, marks = Counter[str](), Counter[str](), Counter[str]()
    for at, opcode, _ in found:
        if nested and slab_from <= at <= slab_to:
            slab[opcode] += 1
        elif tile_from <= at <= tile_to and not any(jump < at < to for jump, to in skipped):
            rest[opcode] += 1
        elif any(jump < at < to for jump, to in marking):
            marks[opcode] += 1
    return slab, rest, marks


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0
