"""`make gpu`: on a CUDA machine, the kernels' tests, a search of tile shapes, the figures promised there, and the grid.

Without a name, all four in this order; each is minutes. Writes tiles.json, gpu.md and what `maskreid bench loss --device cuda`
writes to FOLDER (kernels/bench/results). Exits with 2 without a GPU, 1 when a test fails or a figure is missed. Not yet run
on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from . import eager
from .cases import Case, make_case
from .command_line import OneLineParser
from .figures import BenchError, Promise
from .providers import OURS, constants

ROOT = Path(__file__).parents[3]
STAGES = ("tests", "tiles", "figures", "grid")
IMAGES = 4
# (rows, columns, stages) of a tile; depth stays 64.
TILES = ((128, 128, 3), (128, 128, 4), (128, 256, 3), (64, 128, 4), (64, 256, 3))
# Largest first: eager forms are measured at the first that fits them, and so are we.
EAGER_ROWS = (65536, 32768, 16384)
GRID = "--dtype bfloat16 --compiled --seconds 2 --images 4 --columns 256 --columns 2048"
GRID_ROWS = (512, 2048, 8192, 32768, 65536)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bench:
    """A batch of bfloat16 rows on the GPU; our loss in Triton and the eager form of it, with the same constants."""

    x: Tensor
    labels: Tensor
    ours: Loss
    eager: Loss

    @classmethod
    def of(cls, kernel: str, rows: int, columns: int, violators: float | None = None) -> Bench:
        """`violators`: share of negatives inside the ranking loss's margin."""
        case = Case(kernel, rows, columns, IMAGES, violators, dtype="bfloat16")
        data = make_case(case, torch.device("cuda"))
        words, plain = constants(case, data), getattr(eager, kernel)
        return cls(
            data.x_ND.requires_grad_(),
            data.y_N,
            lambda x, y: OURS[kernel](x, y, backend="triton", **words),
            lambda x, y: plain(x, y, **words),
        )

    def ms(self, loss: Loss) -> float:
        """Forward and backward."""

        def step() -> None:
            self.x.grad = None
            loss(self.x, self.labels).backward()

        return milliseconds(step)


def milliseconds(work: Callable[[], object]) -> float:
    median: float = triton.testing.do_bench(work, warmup=200, rep=2000, return_mode="median")
    return median


def product_ms(x: Tensor, rows: int = 8192) -> float:
    """Time of X X^T alone, in bands that are thrown away."""
    bands = x.detach().split(rows)
    out = x.new_empty((rows, len(x)))
    return milliseconds(lambda: [torch.mm(band, x.detach().t(), out=out[: len(band)]) for band in bands])


def search_tiles() -> list[dict[str, object]]:
    """Forward + backward of batch-hard under each tile shape, and as shipped; fastest first. Nothing reads the result."""
    batch_hard: Any = importlib.import_module("maskreid_kernels.batch_hard.triton")

    default, found = batch_hard.tile_shape, []
    for columns in (256, 2048):
        bench = Bench.of("batch_hard", 16384, columns)
        for block_m, block_n, stages in TILES:
            tile = replace(
                default(2048, torch.bfloat16), block_m=block_m, block_n=block_n, stages=stages, one_slab=False
            )
            batch_hard.tile_shape = lambda *_, tile=tile, **__: tile
            try:
                time_ms = bench.ms(bench.ours)
            except triton.runtime.errors.OutOfResources as error:
                print(f"D={columns} {block_m}x{block_n}, {stages} stages: {error}")
                continue
            finally:
                batch_hard.tile_shape = default
            found.append({"loss": "batch_hard", "columns": columns, "time_ms": time_ms, **asdict(tile)})
        time_ms = bench.ms(bench.ours)
        found.append({"loss": "batch_hard", "columns": columns, "time_ms": time_ms, "block_m": "as shipped"})
    return sorted(found, key=lambda row: (row["columns"], row["time_ms"]))


def figures() -> Iterator[Promise]:
    """Every promise for a GPU; each peer is measured beside us, on the same batch."""
    bench = Bench.of("batch_hard", 65536, 2048)
    floor, ours = product_ms(bench.x), bench.ms(bench.ours)
    yield Promise("batch-hard 65536, D = 2048: times the product", ours / floor, 1.25, False)
    mined = bench.ms(lambda x, y: eager.batch_hard_mined(x, y))
    yield Promise("batch-hard 65536, D = 2048: times faster than chunked mining", mined / ours, 1.3, True)
    del bench
    yield beside_eager("batch_hard", 2048, 5.0)
    for violators, bar in ((0.001, 1.5), (0.5, 3.6)):
        bench = Bench.of("ranking", 65536, 2048, violators)
        what = f"ranking 65536, D = 2048, {100 * violators:g} % violators: times the product"
        yield Promise(what, bench.ms(bench.ours) / product_ms(bench.x), bar, False)
        del bench
    yield beside_eager("ranking", 256, 8.0)
    for kernel in ("batch_hard", "ranking"):
        bench = Bench.of(kernel, 4096, 256, violators=0.01 if kernel == "ranking" else None)
        share = gradient_error(bench, bench.ours) / gradient_error(bench, bench.eager)
        yield Promise(f"{kernel} 4096, D = 256: gradient error beside eager's in bf16", share, 1.0, False)
    for kernel in ("batch_hard", "ranking"):
        bench = Bench.of(kernel, 1 << 20, 256, violators=0.001 if kernel == "ranking" else None)
        bench.x.grad = torch.zeros_like(bench.x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        bench.ours(bench.x, bench.labels).backward()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        yield Promise(f"{kernel} 1048576, D = 256: MiB beside rows and gradient", peak, 512e6 / 2**20, False)
        del bench


def beside_eager(kernel: str, columns: int, bar: float) -> Promise:
    """Against the faster of eager and compiled, at the largest batch that fits one of them."""
    for rows in EAGER_ROWS:
        bench = Bench.of(kernel, rows, columns, violators=0.01 if kernel == "ranking" else None)
        times = []
        for peer in (bench.eager, torch.compile(bench.eager, mode="max-autotune-no-cudagraphs")):
            try:
                times.append(bench.ms(peer))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        if times:
            what = f"{kernel} {rows}, D = {columns}: times faster than the fastest eager or compiled form"
            return Promise(what, min(times) / bench.ms(bench.ours), bar, True)
    return Promise(f"{kernel}, D = {columns}: no eager form fits", None, bar, True)


def gradient_error(bench: Bench, loss: Loss) -> float:
    """Of the bfloat16 rows' gradient: relative to the eager form's on the same rows in float64."""
    exact = bench.x.detach().double().requires_grad_()
    bench.eager(exact, bench.labels).backward()
    bench.x.grad = None
    loss(bench.x, bench.labels).backward()
    assert bench.x.grad is not None and exact.grad is not None
    return float((bench.x.grad.double() - exact.grad).norm() / exact.grad.norm())


def run(*command: str) -> bool:
    """Whether the command of this Python ended with 0."""
    return subprocess.run([sys.executable, *command], cwd=ROOT).returncode == 0


def write_figures(path: Path) -> bool:
    """Whether all promises were kept. The file is written again after each: a stopped run keeps what it measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    lines = [f"# The loss step on a GPU, {datetime.date.today()}", ""]
    lines += [f"{device}, commit {commit.stdout.strip()}; bf16, forward and backward, medians", ""]
    kept = True
    for promise in figures():
        kept &= promise.kept
        print(promise.line(), flush=True)
        lines.append(f"- {promise.line()}")
        path.write_text("\n".join(lines) + "\n")
    return kept


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 1 when a test fails or a figure is missed. Raises BenchError without a GPU."""
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="|".join(STAGES), help="default: all of them")
    parser.add_argument("--results", type=Path, default=ROOT / "kernels" / "bench" / "results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise BenchError("no CUDA device here; run it on a machine that has one")
    stages = options.stages or STAGES
    if unknown := set(stages) - set(STAGES):
        parser.error(f"unknown: {', '.join(unknown)}; use {', '.join(STAGES)}")
    options.results.mkdir(parents=True, exist_ok=True)
    kept = True
    if "tests" in stages:
        kept &= run("-m", "pytest", "-q", "-k", "kernels and not aot", str(ROOT / "tests"))
    if "tiles" in stages:
        (options.results / "tiles.json").write_text(json.dumps(search_tiles(), indent=1) + "\n")
    if "figures" in stages:
        kept &= write_figures(options.results / "gpu.md")
    if "grid" in stages:
        rows = [word for number in GRID_ROWS for word in ("--rows", str(number))]
        bench = ["-m", "maskreid_kernels.bench", "loss", "--device", "cuda", *GRID.split(), *rows]
        kept &= run(*bench, "--output", str(options.results))
    return 0 if kept else 1
