"""What a training step costs beside its network: `make step-cost`.

1. A step of the training loop (agreement of the ranks, DeepSpeed's engine, finite watch, meter) beside a bare
   forward, loss, backward and optimizer on the same batch of 64, taken in turns: medians, one rank.
2. `batch.micro_images`: peak memory of a step above what the process held before it, and its time, for
   batches from 256 to 4,096; unsplit beside it up to 1,024. Each in a process of its own.

Wall time means something on an idle machine alone; CPU time of the process is printed beside it. Promised:
the loop adds at most 10 % (of CPU time; of wall time too where the load is below half of the processors), and
the peak of any batch is at most 1.5 times that of the smallest, of 16 times fewer images. Exit status 1 where
one is missed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gloo import run_ranks
from maskreid_dist.config import Config
from maskreid_dist.data.bad_samples import BadSamples
from maskreid_dist.data.batches import Batch
from maskreid_dist.model import build_network
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.engine import make_optimizer, start_engine
from maskreid_dist.training.loop import _agree_on_step, training_step
from maskreid_dist.training.meter import Meter
from maskreid_dist.training.objective import objective
from maskreid_dist.training.step_clock import StepClock
from maskreid_dist.training.world import StopRequest
from maskreid_kernels.bench.figures import Promise
from test_gradient_cache import CPU, recipe, rows_of, world_of

CLASSES = 200
PIDS = torch.arange(1, CLASSES + 1)
ROWS = 64
SPLIT = (256, 512, 1024, 2048, 4096)
UNSPLIT = (256, 512, 1024)
OVERHEAD_PERCENT = 10.0
FLAT = 1.5


def config_of(micro_images: int, width: float) -> Config:
    return recipe(
        batch={"micro_images": micro_images},
        model={"width": width, "embedding_dim": 256, "fusing_rows": 6},
        loss={"identity_weight": 1.0},
        optimizer={"name": "adamw", "lr": 1e-3, "gradient_clipping": 0.0},
    )


def batch_of(rows: int) -> Batch:
    """Of the demo's image size: 72 x 28."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (rows, 3, 72, 28), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (rows, 1, 72, 28), dtype=torch.uint8, generator=generator) * 255
    return Batch(image, mask, PIDS[torch.arange(rows) // 4 % CLASSES], torch.arange(rows))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock, and of this process's CPUs."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def compare_steps(rank: int, world: int, steps: int, threads: int, width: float, file: str) -> None:
    here = world_of(rank, world)
    torch.set_num_threads(threads)
    config, batch = config_of(0, width), batch_of(ROWS)
    torch.manual_seed(0)
    network = build_network(config, CLASSES)
    optimizer = make_optimizer(network, config.optimizer)
    engine = start_engine(build_network(config, CLASSES), config, ROWS, 1, None)
    clock = StepClock(CPU)
    watch, meter, bad_samples = FiniteWatch(CPU), Meter(clock, CPU), BadSamples(0)
    stop = StopRequest(Path(file).with_suffix(".stop"))

    def bare() -> None:
        labels = torch.searchsorted(PIDS, batch.pids_B)
        output = network(batch.image_B3HW.contiguous(memory_format=torch.channels_last), batch.mask_B1HW)
        loss, _ = objective(output, labels, config.loss, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def whole() -> None:
        with clock.phase("ranks"):
            own, _, _ = _agree_on_step(batch, stop, bad_samples, here)
        scalars, _ = training_step(engine, own, PIDS, config, 0, watch, here, None, clock)
        clock.end_step()
        meter.add(scalars, ROWS)
        if meter.steps == 10:
            meter.take(0.0, 0)

    times: dict[str, list[tuple[float, float]]] = {"bare": [], "whole": []}
    for turn in range(steps + 2):
        for name, work in (("bare", bare), ("whole", whole))[:: 1 if turn % 2 else -1]:
            spent = timed(work)
            if turn >= 2:
                times[name].append(spent)
    Path(file).write_text(json.dumps(times))


def peak_of_a_step(rank: int, world: int, rows: int, micro_images: int, width: float, file: str) -> None:
    here = world_of(rank, world)
    config, batch = config_of(micro_images, width), batch_of(rows)
    torch.manual_seed(0)
    engine = start_engine(build_network(config, CLASSES), config, rows, 1, None)

    def step(of: Batch) -> None:
        training_step(engine, of, PIDS, config, 0, FiniteWatch(CPU), here)

    few = 16 if not micro_images else micro_images
    step(rows_of(batch, slice(few)))  # optimizer states, code, buffers of the libraries
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    wall_s, cpu_s = timed(lambda: step(batch))
    Path(file).write_text(json.dumps([resident_bytes("VmHWM") - before, wall_s, cpu_s]))


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measured(function: Callable[..., None], *arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        run_ranks(function, 1, Path(folder), *arguments, str(file))
        return json.loads(file.read_text())


def print_overhead(steps: int, threads: int, width: float, idle: bool) -> list[Promise]:
    promises = []
    times = measured(compare_steps, steps, threads, width)
    print(f"a step at batch {ROWS}, width {width}, {threads} thread(s), medians of {steps} in turns")
    for place, kind in enumerate(("wall", "CPU")):
        bare, whole = (statistics.median(t[place] for t in times[name]) for name in ("bare", "whole"))
        # Of neighbours in time, so that what else the machine does meets both.
        pairs = zip(times["whole"], times["bare"], strict=True)
        percent = 100 * (statistics.median(w[place] / b[place] for w, b in pairs) - 1)
        print(
            f"  {kind}: bare {1000 * bare:.1f} ms, loop {1000 * whole:.1f} ms, overhead {percent:+.1f} % "
            "(median of the pairs' ratios)"
        )
        if idle or kind == "CPU":
            text = f"percent of {kind} time that the loop adds to a bare step"
            promises.append(Promise(text, percent, OVERHEAD_PERCENT, at_least=False))
    return promises


def print_memory(width: float, micro_images: int, largest: int) -> list[Promise]:
    print(f"\npeak memory of a step above what was held before, width {width}, one thread")
    print(f"| batch | micro_images = {micro_images}: MB | CPU s | unsplit: MB | CPU s | CPU time of micro |")
    print("|---|---|---|---|---|---|")
    micro: dict[int, float] = {}
    unsplit: dict[int, float] = {}
    for rows in (rows for rows in SPLIT if rows <= largest):
        micro[rows], _, cpu_s = measured(peak_of_a_step, rows, micro_images, width)
        line = f"| {rows} | {micro[rows] / 1e6:.0f} | {cpu_s:.2f} |"
        if rows in UNSPLIT:
            unsplit[rows], _, whole_s = measured(peak_of_a_step, rows, 0, width)
            line += f" {unsplit[rows] / 1e6:.0f} | {whole_s:.2f} | x {cpu_s / whole_s:.2f} |"
        else:
            line += " | | |"
        print(line, flush=True)
    for name, peaks in ((f"micro_images = {micro_images}", micro), ("unsplit", unsplit)):
        if len(peaks) > 1:
            least, most = min(peaks), max(peaks)
            ratio, each = peaks[most] / peaks[least], (peaks[most] - peaks[least]) / (most - least)
            print(f"{name}: from {least} to {most} images x {ratio:.2f}, {each / 1e3:.0f} KB an image")
    if len(micro) < 2:
        return []
    text = f"peak of micro_images up to {max(micro)} images, times that of {min(micro)}"
    return [Promise(text, max(micro.values()) / micro[min(micro)], FLAT, at_least=False)]


def main() -> int:
    parser = argparse.ArgumentParser(description="What a training step costs beside its network.")
    parser.add_argument("--steps", type=int, default=20, help="of the first part; 0: leave it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=float, default=0.5, help="of the network, in the first part")
    parser.add_argument("--micro-images", type=int, default=64)
    parser.add_argument("--largest", type=int, default=SPLIT[-1], help="batch of the second part")
    options = parser.parse_args()
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    print(f"load of the last minute: {load:.1f} on {processors} processors")
    promises = []
    if options.steps:
        promises += print_overhead(options.steps, options.threads, options.width, load < processors / 2)
    promises += print_memory(0.25, options.micro_images, options.largest)
    print()
    for promise in promises:
        print(promise.line())
    return 0 if all(promise.kept for promise in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
