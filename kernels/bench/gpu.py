"""`make gpu`: on a CUDA machine, the kernels' tests, a search of tile shapes, and the figures the kernels promise.

    python kernels/bench/gpu.py [--skip-tests] [--results FOLDER]

Writes tiles.json and gpu.md to FOLDER (kernels/bench/results), and runs `maskreid bench loss --device cuda` there. Exits with 2 without a GPU, 1 when a test fails or a figure is missed. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from maskreid_kernels import batch_hard_loss, ranking_loss

ROOT = Path(__file__).parents[2]
IMAGES = 4
# (rows, columns, stages) of a tile; depth stays 64.
TILES = ((128, 128, 3), (128, 128, 4), (128, 256, 3), (64, 128, 4), (64, 256, 3))


def batch(rows: int, columns: int, spread: float) -> tuple[Tensor, Tensor]:
    """bfloat16 unit rows, IMAGES to an identity; `spread` 0.05: few negatives violate the margin, inf: half do."""
    generator = torch.Generator("cuda").manual_seed(0)
    labels = torch.arange(rows, device="cuda") // IMAGES
    x = torch.randn(rows, columns, device="cuda", generator=generator, dtype=torch.bfloat16)
    if spread != float("inf"):
        x = x[labels * IMAGES] + spread * x
    return F.normalize(x).requires_grad_(), labels


def milliseconds(work: Callable[[], object]) -> float:
    median: float = triton.testing.do_bench(work, warmup=200, rep=2000, return_mode="median")
    return median


def forward_backward(
    loss: Callable[..., Tensor], x: Tensor, labels: Tensor, **options: object
) -> Callable[[], None]:
    def step() -> None:
        x.grad = None
        loss(x, labels, backend="triton", **options).backward()

    return step


def product_ms(x: Tensor, rows: int = 8192) -> float:
    """Time of X X^T alone, in bands that are thrown away."""
    bands = x.detach().split(rows)
    out = x.new_empty((rows, len(x)))
    return milliseconds(lambda: [torch.mm(band, x.detach().t(), out=out[: len(band)]) for band in bands])


def search_tiles() -> list[dict[str, object]]:
    """Forward + backward of batch-hard under each tile shape, and as shipped; fastest first. Nothing reads the result."""
    from maskreid_kernels.batch_hard import triton as batch_hard

    default, found = batch_hard.tile_shape, []
    for columns in (256, 2048):
        x, labels = batch(16384, columns, float("inf"))
        for block_m, block_n, stages in TILES:
            tile = replace(
                default(2048, torch.bfloat16), block_m=block_m, block_n=block_n, stages=stages, one_slab=False
            )
            batch_hard.tile_shape = lambda *_, tile=tile, **__: tile
            try:
                time_ms = milliseconds(forward_backward(batch_hard_loss, x, labels))
            except triton.runtime.errors.OutOfResources as error:
                print(f"D={columns} {block_m}x{block_n}, {stages} stages: {error}")
                continue
            finally:
                batch_hard.tile_shape = default
            found.append({"loss": "batch_hard", "columns": columns, "time_ms": time_ms, **asdict(tile)})
        time_ms = milliseconds(forward_backward(batch_hard_loss, x, labels))
        found.append({"loss": "batch_hard", "columns": columns, "time_ms": time_ms, "block_m": "as shipped"})
    return sorted(found, key=lambda row: (row["columns"], row["time_ms"]))


def figures() -> list[tuple[str, float, float]]:
    """(what, value, bound it must not exceed)."""
    found = []
    x, labels = batch(65536, 2048, float("inf"))
    step, floor = forward_backward(batch_hard_loss, x, labels), product_ms(x)
    found.append(("batch-hard 65536^2 x 2048, times the product", milliseconds(step) / floor, 1.25))
    for name, spread, bound in (("few violators", 0.05, 1.5), ("dense", float("inf"), 3.6)):
        x, labels = batch(65536, 2048, spread)
        step = forward_backward(ranking_loss, x, labels, normalize=False)
        found.append((f"ranking, {name}, times the product", milliseconds(step) / floor, bound))
    del x, labels, step
    for name, loss in (("batch-hard", batch_hard_loss), ("ranking", ranking_loss)):
        x, labels = batch(1 << 20, 256, 0.05)
        x.grad = torch.zeros_like(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(x, labels, backend="triton", normalize=False).backward()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        found.append((f"{name}, MB beside rows and gradient at N = 1048576, D = 256", peak, 512))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: no CUDA device here; run it on a machine that has one", file=sys.stderr)
        return 2
    failed = False
    if not options.skip_tests:
        tests = [sys.executable, "-m", "pytest", "-q", "-k", "kernels and not aot", str(ROOT / "tests")]
        failed = subprocess.run(tests, cwd=ROOT).returncode != 0
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "tiles.json").write_text(json.dumps(search_tiles(), indent=1) + "\n")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, commit {commit}"
    lines = [
        f"# The loss step on a GPU, {datetime.date.today()}",
        "",
        device,
        "",
        "| figure | value | bound | |",
    ]
    lines.append("|---|---|---|---|")
    for what, value, bound in figures():
        failed |= value > bound
        lines.append(f"| {what} | {value:.2f} | <= {bound} | {'PASS' if value <= bound else 'MISS'} |")
    (options.results / "gpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    bench = [sys.executable, "-m", "maskreid_dist", "bench", "loss", "--device", "cuda"]
    bench += ["--output", str(options.results)]
    failed |= subprocess.run(bench, cwd=ROOT).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
