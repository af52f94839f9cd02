"""Conversion speed: pairs per second of one core's time, and of wall time, by number of workers."""

import json
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..convert import convert
from ..errors import ShardError
from ..layouts.market1501 import scan_market1501
from ..reading import open_shards
from ..samples import Layout


@dataclass(frozen=True)
class ConversionSpeed:
    """Medians over `runs`. `core_pairs_s` is pairs per second of CPU time of all processes, their start
    included."""

    workers: int
    runs: int
    pairs: int
    cpu_s: float
    wall_s: float
    core_pairs_s: float
    wall_pairs_s: float


@contextmanager
def loose_files(source: Path | None, shards: Path) -> Iterator[Path]:
    """`source`, or a temporary folder in Market-1501's layout with the files that `shards` were made of."""
    if source is not None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="maskreid-bench-") as folder:
        shard_set = open_shards(shards)
        for split in shard_set.splits:
            for url in shard_set.split(split).urls():
                _extract(Path(url), Path(folder))
        yield Path(folder)


def measure_conversion(source: Path, workers: int, runs: int) -> ConversionSpeed:
    """Convert `source` (Market-1501's layout) `runs` times after one run that fills the page cache.

    A bad mask is replaced by a full one. Scanning is part of the time. Raises ShardError where there is no
    image.
    """
    layout = _convert(source, workers)
    pairs = sum(map(len, layout.splits.values()))
    if not pairs:
        raise ShardError(f"{source}: no images")
    cpu, wall = [], []
    for _ in range(runs):
        cpu_before, before = _cpu_s(), time.perf_counter()
        _convert(source, workers)
        wall.append(time.perf_counter() - before)
        cpu.append(_cpu_s() - cpu_before)
    cpu_s, wall_s = statistics.median(cpu), statistics.median(wall)
    return ConversionSpeed(workers, runs, pairs, cpu_s, wall_s, pairs / cpu_s, pairs / wall_s)


def _convert(source: Path, workers: int) -> Layout:
    layout = scan_market1501(source)
    with tempfile.TemporaryDirectory(prefix="maskreid-bench-") as folder:
        # Small shards, so that each worker has several.
        convert(
            layout,
            Path(folder, "out"),
            dataset="bench",
            on_bad_mask="full",
            shard_bytes=4_000_000,
            workers=workers,
        )
    return layout


def _cpu_s() -> float:
    """CPU time of this process and of its ended children, s."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _extract(shard: Path, folder: Path) -> None:
    """Samples are three members: image, mask, and the json that holds the image's path in the data set.

    Raises ShardError for a path that Market-1501's layout does not have.
    """
    with tarfile.open(shard) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar]
        data = [file.read() for _, file in members if file is not None]
    for image, mask, about in zip(data[::3], data[1::3], data[2::3], strict=True):
        name = PurePosixPath(json.loads(about)["source"])
        if name.is_absolute() or ".." in name.parts or len(name.parts) != 2:
            raise ShardError(f"{shard}: source {name} is not <folder>/<file> of Market-1501's layout")
        for path, content in ((folder / name, image), (_mask_path(folder, name), mask)):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def _mask_path(folder: Path, name: PurePosixPath) -> Path:
    return folder / f"{name.parts[0]}_seg" / f"{name.stem}.png"
