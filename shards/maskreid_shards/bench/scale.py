"""What a large data set costs: converted, verified, opened and planned, each in a process of its own."""

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..convert import convert
from ..errors import ShardError
from ..layouts.table import scan_csv
from ..plan import Plan
from ..reading import open_shards
from ..verification.folder import verify
from .own_process import in_own_process, peak_mb

PICTURES = 256  # different pairs; all others are hard links to them
IMAGES = 4  # of an identity
FOLDER = 1000  # images in a folder
PAIR_BYTES = 5_000  # on the disk, with folders' entries, shards, records and index


@dataclass(frozen=True)
class StageCost:
    """`cpu_s` is that of the stage's process and its workers, `peak_mb` (1e6 bytes) the process's own memory,
    `workers_peak_mb` that of its largest worker, which counts what the process had when it started one."""

    stage: str
    pairs: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    workers_peak_mb: float


def check_room(folder: Path, pairs: int) -> None:
    """Raise ShardError where the set and its shards would not fit the disk of `folder`."""
    needed, free = pairs * PAIR_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise ShardError(
            f"{folder}: {pairs} pairs and their shards take about {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; choose another --folder, or fewer --pairs"
        )


def write_pairs(folder: Path, pairs: int) -> Path:
    """A CSV file of `pairs` crops of 16 x 32 pixels with masks, hard links to PICTURES files, IMAGES an
    identity."""
    rng = np.random.default_rng(0)
    pool = folder / "pool"
    pool.mkdir()
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (4, 2, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        mask = np.zeros((32, 16), np.uint8)
        mask[number % 8 : 28, 4:12] = 255
        for name, values in ((f"{number}.jpg", pixels), (f"{number}.png", mask)):
            buffer = BytesIO()
            Image.fromarray(values).save(buffer, "JPEG" if name.endswith("jpg") else "PNG")
            (pool / name).write_bytes(buffer.getvalue())
    with open(folder / "list.csv", "w") as table:
        table.write("path,pid,camid,split\n")
        for number in range(pairs):
            images = f"images/{number // FOLDER:06d}"
            if number % FOLDER == 0:
                (folder / images).mkdir(parents=True)
                (folder / f"{images}_seg").mkdir()
            os.link(pool / f"{number % PICTURES}.jpg", folder / images / f"{number}.jpg")
            os.link(pool / f"{number % PICTURES}.png", folder / f"{images}_seg" / f"{number}.png")
            table.write(f"{images}/{number}.jpg,{number // IMAGES + 1},{number % IMAGES + 1},train\n")
    return folder / "list.csv"


def measure_scale(folder: Path, pairs: int, workers: int, shard_bytes: int) -> Iterator[StageCost]:
    """The stages on a set that `write_pairs` makes in `folder`, each when it is done."""
    table, out = write_pairs(folder, pairs), folder / "out"
    stages: list[tuple[str, Callable[..., None], tuple[object, ...]]] = [
        ("convert", _convert, (table, out, workers, shard_bytes)),
        ("verify --quick", _verify, (out,)),
        ("open", _open, (out,)),
        ("plan, first step", _plan, (out,)),
    ]
    for name, stage, arguments in stages:
        yield _measured(name, pairs, stage, arguments)


def _convert(table: Path, out: Path, workers: int, shard_bytes: int) -> None:
    convert(scan_csv(table), out, dataset="bench", workers=workers, shard_bytes=shard_bytes)


def _verify(out: Path) -> None:
    assert not verify(out, quick=True)


def _open(out: Path) -> None:
    assert len(open_shards(out).split("train").read(0).image)


def _plan(out: Path) -> None:
    Plan.pk(open_shards(out).split("train").table, identities=16, images=4, seed=0).global_batch(0, 0)


def _measured(name: str, pairs: int, stage: Callable[..., None], arguments: tuple[object, ...]) -> StageCost:
    return StageCost(name, pairs, *in_own_process(_run, stage, arguments))


def _run(stage: Callable[..., None], arguments: tuple[object, ...]) -> tuple[float, float, float, float]:
    started = time.perf_counter()
    stage(*arguments)
    wall = time.perf_counter() - started
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in (own, workers))
    return wall, cpu, peak_mb(), workers.ru_maxrss * 1024 / 1e6
