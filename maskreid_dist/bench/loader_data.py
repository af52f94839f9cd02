"""The same pairs as shards and as loose files, larger than one data set at hand; and
the page cache, emptied or filled."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maskreid_dist.errors import UserError
from maskreid_shards import Layout, RawPair, Source, Split, convert, open_shards

SHARDS = 16  # sequential readers share whole shards: at least one for each worker
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class LoaderData:
    """`sources[n]` are the loose files of the split's sample n."""

    split: Split
    sources: tuple[Source, ...]

    @property
    def loose_paths(self) -> list[Path]:
        return [path for s in self.sources for path in (s.path, s.mask_path) if path is not None]

    @property
    def shard_paths(self) -> list[Path]:
        return [Path(url) for url in self.split.urls()]


@contextmanager
def repeated_pairs(shards: Path, pairs: int) -> Iterator[LoaderData]:
    """The identities of the train split, again and again under new pids until there
    are `pairs`, in a temporary folder.

    The loose files lie as in Market-1501: one folder of images, one of masks.
    The shards are converted from them.
    """
    split = open_shards(shards).split("train")
    identities = [pid for pid in split.identities.tolist() if pid > 0]
    with tempfile.TemporaryDirectory(prefix="maskreid-bench-") as name:
        folder, sources, pid = Path(name), list[Source](), 0
        for sub in ("bounding_box_train", "bounding_box_train_seg"):
            (folder / sub).mkdir()
        while len(sources) < pairs:
            raws = split.read_many(split.images_of(identities[pid % len(identities)]))
            pid += 1
            sources += [_write(folder, raw, pid, number) for number, raw in enumerate(raws)]
        total = sum(path.stat().st_size + 1024 for s in sources for path in (s.path, s.mask_path) if path)
        layout = Layout("market1501", {"train": tuple(sources)})
        out = folder / "shards"
        convert(
            layout, out, dataset="bench", shard_bytes=total // SHARDS, workers=len(os.sched_getaffinity(0))
        )
        os.sync()  # only clean pages can be dropped
        written = open_shards(out).split("train")
        by_key = {source.key: source for source in sources}
        yield LoaderData(written, tuple(by_key[key.decode()] for key in written.keys.tolist()))


def _write(folder: Path, raw: RawPair, pid: int, number: int) -> Source:
    key = f"p{pid:08d}_{number:05d}"
    suffix = ".jpg" if raw.image[:2] == b"\xff\xd8" else ".png" if raw.image[:4] == b"\x89PNG" else ".webp"
    image, mask = f"bounding_box_train/{key}{suffix}", folder / "bounding_box_train_seg" / f"{key}.png"
    source = Source(folder / image, mask, pid, raw.camid, "train", key, image)
    source.path.write_bytes(raw.image)
    mask.write_bytes(raw.mask)
    return source


def check_drop_caches() -> None:
    """Raises UserError where this process may not empty the machine's caches."""
    if not os.access(DROP_CACHES, os.W_OK):
        raise UserError(f"--drop-caches writes {DROP_CACHES}: run as root, or leave it out")


def empty_cache(paths: Sequence[Path], everything: bool) -> None:
    """Drop the clean pages of these files; `everything`: also the names and inodes,
    with all caches of the machine."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    if everything:
        DROP_CACHES.write_text("3")


def fill_cache(paths: Sequence[Path]) -> None:
    for path in paths:
        path.read_bytes()


def comes_from_disk(path: Path) -> bool:
    """Whether reading the file now reads from a disk (by /proc/self/io)."""
    before = _disk_bytes()
    path.read_bytes()
    return _disk_bytes() > before


def _disk_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise UserError("/proc/self/io has no read_bytes: use a Linux kernel with task I/O accounting")
