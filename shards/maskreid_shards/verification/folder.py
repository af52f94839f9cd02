"""Check a shard folder completely, and go on after every problem: manifest, indexes, shards, foreign
files."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from ..manifest import MANIFEST, Manifest, ShardEntry, SplitEntry, index_name, read_manifest, shard_name
from .index import read_index, verify_records
from .problems import Problem
from .shard import verify_shard

# What people put beside the shards, and no reader looks at: documents, and what makes the folder a package.
DOCUMENT = re.compile(r"(README|LICENSE|NOTICE)[A-Za-z0-9._-]*|identities\.csv|pyproject\.toml", re.ASCII)
_SHARD = re.compile(r"([a-z][a-z0-9_]*)/(\d{6})\.tar", re.ASCII)
_INDEX = re.compile(r"index/([a-z][a-z0-9_]*)\.npy", re.ASCII)


@dataclass(frozen=True)
class _Task:
    """A shard to check; rows as `verify_shard` takes them."""

    name: str
    entry: ShardEntry | None
    rows: NDArray[np.void] | None

    def run(self, folder: Path) -> list[Problem]:
        return verify_shard(folder, self.name, self.entry, self.rows)


def verify(
    path: Path | str,
    *,
    workers: int = 1,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Everything that is wrong with a shard folder; empty when all is well.

    Reads every byte and decodes every picture. `workers` processes share the shards; the list is the same for
    any number. `progress(done, total)` counts shards. Bytes of any kind are problems, never exceptions: a
    damaged manifest is not believed, then index and shards are checked against each other; without an index
    the samples are those in the shards. `quick`: manifest, indexes and the shards' sizes, no shard is read.

    Raises ShardError: no such folder, no manifest at all, a worker process that was killed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder; give one that `maskreid convert` made")
    if not os.path.lexists(folder / MANIFEST):
        raise ShardError(f"{folder}: no {MANIFEST}, so not a shard folder")
    files, links = _plain_files(folder)
    problems = [Problem(name, None, None, "symlink", "") for name in links]
    manifest: Manifest | None = None
    if MANIFEST in files:
        try:
            manifest = read_manifest(folder)
        except ShardError as error:
            problems.append(Problem(MANIFEST, None, None, "manifest", str(error)))
    elif MANIFEST not in links:
        problems.append(Problem(MANIFEST, None, None, "manifest", f"{folder / MANIFEST}: is a folder"))
    names = _splits(files) if manifest is None else {n: s.shards for n, s in manifest.splits.items()}
    expected = {MANIFEST, *map(index_name, names), *(s.name for shards in names.values() for s in shards)}
    foreign = sorted(name for name in files if name not in expected and not DOCUMENT.fullmatch(name))
    problems += [Problem(name, None, None, "foreign-file", "") for name in foreign]
    tasks: list[_Task] = []
    for split, shards in names.items():
        entry = manifest.splits[split] if manifest is not None else None
        found, mine = split_tasks(folder, split, entry, shards, files)
        problems += found
        tasks += mine
    if quick:
        return problems + [
            Problem(task.name, None, None, "shard-size", f"{files[task.name]} bytes, not {task.entry.bytes}")
            for task in tasks
            if task.entry is not None and files[task.name] != task.entry.bytes
        ]
    for found in _run(folder, tasks, workers, progress):
        problems += found
    return problems


def split_tasks(
    folder: Path,
    split: str,
    entry: SplitEntry | None,
    shards: tuple[ShardEntry, ...],
    files: dict[str, int],
) -> tuple[list[Problem], list[_Task]]:
    """What is wrong with a split's index and with the list of its shards, and the shards to check."""
    problems: list[Problem] = []
    tasks: list[_Task] = []
    name = index_name(split)
    rows, possible = None, np.zeros(0, bool)
    if name not in files:
        problems.append(Problem(name, None, None, "index-missing", ""))
    else:
        rows, problems = read_index(folder, name, entry)
    if rows is not None:
        # Judged by the manifest's sizes: a shard cut short is the shard's problem.
        sizes = np.array([s.bytes for s in shards], np.int64)
        possible, found = verify_records(name, rows, entry, sizes)
        problems += found
    for number, shard in enumerate(shards):
        if shard.name not in files:
            problems.append(Problem(shard.name, None, None, "shard-missing", ""))
            continue
        mine = None if rows is None else np.array(rows[possible & (rows["shard"] == number)])
        tasks.append(_Task(shard.name, shard if entry is not None else None, mine))
    return problems, tasks


def _plain_files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Sizes of the plain files by path in the folder, and the paths of what is neither file nor folder.

    No link is followed: nothing outside of the folder is read.
    """
    files: dict[str, int] = {}
    others: list[str] = []
    for directory, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted([*names, *folders]):
            path = Path(directory) / name
            # A name need not be text: what is not is shown escaped.
            relative = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                others.append(relative)
            elif path.is_file():
                files[relative] = path.stat().st_size
    return files, others


def _splits(files: dict[str, int]) -> dict[str, tuple[ShardEntry, ...]]:
    """The splits and shards that the folder itself shows, where the manifest cannot be believed."""
    last: dict[str, int] = {match[1]: -1 for name in files if (match := _INDEX.fullmatch(name))}
    for name in files:
        if match := _SHARD.fullmatch(name):
            last[match[1]] = max(last.get(match[1], -1), int(match[2]))
    return {
        split: tuple(
            ShardEntry(name, files.get(name, 0), "", 0, 0)
            for name in (shard_name(split, number) for number in range(count + 1))
        )
        for split, count in sorted(last.items())
    }


def _run(
    folder: Path, tasks: list[_Task], workers: int, progress: Callable[[int, int], None] | None
) -> Iterator[list[Problem]]:
    """`verify_shard` on every task, in their order; a few tasks ahead of the one that is awaited."""
    report = progress or (lambda done, total: None)
    report(0, len(tasks))
    if workers <= 1:
        for done, task in enumerate(tasks, 1):
            yield task.run(folder)
            report(done, len(tasks))
        return
    ahead: deque[Future[list[Problem]]] = deque()
    todo = iter(tasks)
    with ProcessPoolExecutor(workers) as pool:
        for done in range(1, len(tasks) + 1):
            while len(ahead) < 2 * workers and (following := next(todo, None)) is not None:
                ahead.append(pool.submit(following.run, folder))
            try:
                yield ahead.popleft().result()
            except BrokenProcessPool:
                raise ShardError(f"{folder}: a checking process was killed; try --workers 1") from None
            report(done, len(tasks))
