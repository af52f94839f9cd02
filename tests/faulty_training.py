"""`launch/train.py` with something wrong on one rank at one step. Run as a program, by every rank.

FAULT = "KIND RANK STEP [STEP]"; steps count from 1, as in the log. The ranks beside one that stops or hangs
wait until it has, and from then on a second for what never comes, in place of engine.collective_timeout_s.
What goes wrong at once, not at the next save, leaves its moment in the file FAULT_AT, if there is one.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed import distributed_c10d

from maskreid_dist.cli.app import train_main
from maskreid_dist.data.batches import Batch
from maskreid_dist.training import loop
from maskreid_dist.training.world import World

PAGE = 4096
KIND, RANK, *STEPS = os.environ["FAULT"].split()

training_step = loop.training_step


def faulty_step(
    engine: Any,
    batch: Batch,
    classes: Any,
    config: Any,
    step: int,
    watch: Any,
    world: World,
    memory: Any = None,
    clock: Any = None,
) -> Any:
    here = world.rank == int(RANK) and str(step + 1) in STEPS
    if KIND in ("stop", "hang") and str(step + 1) in STEPS:
        if here:
            (runs() / "waiting").write_text(str(os.getpid()))
        else:
            be_impatient(world)
    hooks = [hook for hook in (before(engine.module) if here else None,) if hook]
    result = training_step(engine, batch, classes, config, step, watch, world, memory, clock)
    for hook in hooks:
        hook.remove()
    if here:
        after(engine.module)
    return result


def be_impatient(world: World) -> None:
    """Not before the other rank has stopped, or is about to hang: whether it is late must not matter."""
    other = runs() / "waiting"
    while not other.exists() or not other.read_text():
        time.sleep(0.05)
    while KIND == "stop" and psutil.Process(int(other.read_text())).status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    for group in (None, world.control):
        distributed_c10d._set_pg_timeout(timedelta(seconds=1), group)


def runs() -> Path:
    return Path(sys.argv[sys.argv.index("--runs") + 1])


def fill_disk() -> None:
    """Every file of this process may grow to 64 KB from here on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


def fill_file_system(left: int) -> None:
    """The file system of the runs has as many bytes left, and the log's last page none."""
    for log in runs().glob("*/metrics.jsonl"):
        with log.open("ab") as file:
            file.write(b" " * (-log.stat().st_size % PAGE))
    free = os.statvfs(runs()).f_bavail * os.statvfs(runs()).f_frsize
    (runs() / "filler").write_bytes(bytes(free - left))


def kill_once() -> None:
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        os.kill(os.getpid(), signal.SIGKILL)


def kill_worker() -> None:
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()


def hang() -> None:
    while True:
        time.sleep(1)


def fail() -> None:
    raise KeyError("a defect")


ACTS: dict[str, Callable[[], object]] = {
    "disk": fill_disk,
    "gone": lambda: shutil.rmtree(runs()),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "full": lambda: fill_file_system(0),
    "nearly-full": lambda: fill_file_system(200_000),
    "kill-once": kill_once,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "worker": kill_worker,
    "hang": hang,
    "defect": fail,
}
AT_ONCE = ("kill", "stop", "worker", "hang", "defect")


def before(network: torch.nn.Module) -> Any:
    weight = next(network.parameters())
    if KIND in ACTS:
        if KIND in AT_ONCE and (file := os.environ.get("FAULT_AT")):
            Path(file).write_text(str(time.monotonic()))
        ACTS[KIND]()
    if KIND == "gradient":
        return weight.register_hook(lambda gradient: gradient * torch.nan)
    if KIND == "images":  # as a picture that overflows would: activations, statistics, embeddings
        return network.register_forward_pre_hook(lambda module, inputs: (inputs[0] * torch.nan, inputs[1]))
    return None


def after(network: torch.nn.Module) -> None:
    weight = next(network.parameters())
    with torch.no_grad():
        if KIND == "part":  # a bit of one weight
            weight.view(torch.int32).view(-1)[0] ^= 1
        elif KIND == "weights":
            weight.view(-1)[0] = torch.inf


if __name__ == "__main__":
    loop.training_step = faulty_step
    train_main()
