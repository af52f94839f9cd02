"""A conversion divided among machines: numbered parts, each in a folder of its own, and the step that makes
them one shard folder, with the bytes that one machine would have written."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from .atomic import (
    partial_folder,
    partial_of,
    plain_folder,
    remove_folder,
    sync_folder,
    write_synced,
)
from .convert import (
    Progress,
    check_fresh,
    has_finished_shards,
    keep_only,
    prepare,
    write_job,
    write_missing,
)
from .dealing import dealt
from .errors import ShardError
from .index_limits import fit_index
from .job import SHARD_BYTES, Job, JobOptions, checked_job
from .manifest import VERSION
from .opening import MANIFEST_BYTES, read_file
from .report import ConversionReport
from .resume import RECORDS, ShardTask
from .samples import Layout, Sources
from .writing import WrittenShard

MARKER = "part.json"


@dataclass(frozen=True)
class PartReport:
    """A finished part: `shards` of all `of_shards`, with so many images, in `folder`."""

    folder: Path
    number: int
    count: int
    shards: int
    of_shards: int
    images: int
    already: bool
    warnings: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """The report for programs, of what JSON has."""
        return {**vars(self), "folder": str(self.folder), "warnings": list(self.warnings)}

    def lines(self) -> list[str]:
        """The report for people."""
        was = "was finished already" if self.already else "is finished"
        return [
            f"part {self.number} of {self.count} {was}: {self.shards} of {self.of_shards} shards, "
            f"{self.images} images -> {self.folder}",
            "with all parts there, the same command with --finish in place of --part makes them one",
            *self.warnings,
        ]


def part_folder(out: Path, number: int, count: int) -> Path:
    """Where a finished part lies until all are there; it appears whole, so it marks the part's completion."""
    return out.with_name(f"{out.name}.part-{number}-of-{count}")


def images_of_part(
    layout: Layout, part: tuple[int, int], *, dataset: str, shard_bytes: int = SHARD_BYTES, seed: int = 0
) -> Layout:
    """The layout with the images of a part alone, where masks are made for the conversion
    (`MaskOptions.made`): those whose masks the part's machine makes."""
    number, count = part
    shards = [*dealt(fit_index(layout), dataset, shard_bytes, seed, made_masks=True)][number - 1 :: count]
    splits = {
        split: Sources.of(
            source for name, _, sources in shards if name.startswith(f"{split}/") for source in sources
        )
        for split in layout.splits
    }
    return replace(layout, splits=splits)


def convert_part(
    layout: Layout,
    out: Path,
    part: tuple[int, int],
    *,
    workers: int = 1,
    progress: Progress | None = None,
    **options: Unpack[JobOptions],
) -> PartReport:
    """Write every count-th shard from the number-th, `part` = (number, count), into `part_folder`.

    Parts may be written anywhere, at any time and in any order, also on machines that see the data set under
    other paths; `finish_parts` wants their folders beside `out`. A finished part whose shards are sound is
    left as it is; after a failure or a kill the same call goes on. See `convert` for the options.

    Raises ShardError as `convert`, for a part that there is not, and where the folder holds a part of another
    conversion.
    """
    number, count = part
    if not 1 <= number <= count:
        raise ShardError(f"part {number}/{count}: write I/N, where I counts from 1 to N")
    check_fresh(out)
    job = checked_job(layout, **options)
    place = part_folder(out.resolve(), number, count)
    tasks = job.tasks(place)
    marker = {"part": [number, count], "shards": len(tasks), "plan": _plan(job, tasks)}
    mine = tasks[number - 1 :: count]
    images = sum(len(task.sources) for task in mine)
    said = (*job.links, *job.warnings)
    report = PartReport(place, number, count, len(mine), len(tasks), images, True, said)
    if place.exists():
        _check_same(place, marker)
        if all(task.finished() is not None for task in mine):
            return report
        place.replace(partial_of(place))  # damaged, or its inputs changed: what is sound is kept
    with partial_folder(place, has_finished_shards) as folder:
        mine = [replace(task, folder=folder) for task in mine]
        finished, _ = prepare(folder, job.layout, mine)
        write_missing(job, folder, mine, finished, workers, progress)
        for split in job.layout.splits:
            sync_folder(folder / split)
        write_synced(folder / MARKER, json.dumps(marker).encode())
        sync_folder(folder)
    return replace(report, already=False)


def finish_parts(layout: Layout, out: Path, **options: Unpack[JobOptions]) -> ConversionReport:
    """Make `out` of the finished parts beside it, by renaming their shards: no image is read again.

    Files are stated once more, and every shard is checked against its sha256 and the names and sizes of its
    inputs (not their times: copies on other machines have others). May be killed and called again.

    Raises ShardError: parts are missing, of other numbers of parts or other conversions, or damaged: those
    are to be run again.
    """
    check_fresh(out)
    job = checked_job(layout, **options)
    folders = _found(out.resolve())

    def gather(folder: Path, tasks: Sequence[ShardTask]) -> dict[str, WrittenShard]:
        marker = {"shards": len(tasks), "plan": _plan(job, tasks)}
        for number, place in enumerate(folders, 1):
            _check_same(place, {"part": [number, len(folders)], **marker})
        return _gather(folder, job, tasks, folders)

    report = write_job(job, out, workers=1, progress=None, gather=gather)
    for place in folders:
        remove_folder(place)
    return report


def _found(out: Path) -> list[Path]:
    """The folders of all parts, in order."""
    name = re.compile(re.escape(out.name) + r"\.part-(\d+)-of-(\d+)", re.ASCII)
    found = [
        (int(match[1]), int(match[2])) for p in out.parent.iterdir() if (match := name.fullmatch(p.name))
    ]
    counts = sorted({count for _, count in found})
    if not found:
        raise ShardError(f"{out}: no finished part lies beside it; run --part 1/N to --part N/N first")
    if len(counts) > 1:
        raise ShardError(
            f"{out}: beside it lie parts of {' and of '.join(map(str, counts))}; remove those you do not mean"
        )
    missing = [str(number) for number in range(1, counts[0] + 1) if (number, counts[0]) not in found]
    if missing:
        raise ShardError(
            f"{out}: {len(missing)} of {counts[0]} parts are not finished: {', '.join(missing[:100])}; run "
            f"them (--part {missing[0]}/{counts[0]}), then --finish"
        )
    return [part_folder(out, number, counts[0]) for number in range(1, counts[0] + 1)]


def _gather(
    folder: Path, job: Job, tasks: Sequence[ShardTask], folders: Sequence[Path]
) -> dict[str, WrittenShard]:
    """Move all shards and their records into `folder`, once all are known to be sound."""
    plain_folder(folder / RECORDS)
    places = [folders[number % len(folders)] for number in range(len(tasks))]
    finished: dict[str, WrittenShard] = {}
    again: dict[Path, str] = {}
    for task, place in zip(tasks, places, strict=True):
        # A killed call may have moved the shard, or the shard and its record, already.
        shard = replace(task, folder=place).finished(same_times=False) or task.finished(same_times=False)
        if shard is None and not (place / task.name).exists():
            _move(replace(task, folder=place).record, task.record)
            shard = task.finished(same_times=False)
        if shard is None:
            again.setdefault(place, task.name)
        else:
            finished[task.name] = shard
    if again:
        numbers = [str(folders.index(place) + 1) for place in again]
        place, name = next(iter(again.items()))
        raise ShardError(
            f"{place / name}: damaged, or made of other inputs; run again: --part "
            f"{', '.join(f'{number}/{len(folders)}' for number in numbers)}"
        )
    for split in job.layout.splits:
        (folder / split).mkdir(exist_ok=True)
    for task, place in zip(tasks, places, strict=True):
        theirs = replace(task, folder=place)
        _move(place / task.name, folder / task.name)
        _move(theirs.record, task.record)
    keep_only(folder, job.layout, tasks)
    return finished


def _move(source: Path, target: Path) -> None:
    if source.exists():
        source.replace(target)


def _check_same(place: Path, expected: dict[str, object]) -> None:
    """Raise ShardError unless `place` is the part that the marker `expected` says."""
    try:
        found = json.loads(read_file(place / MARKER, MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        found = None
    if found != expected:
        raise ShardError(
            f"{place}: is no part of this conversion (other inputs, options or program); remove it, or use "
            "the same options"
        )


def _plan(job: Job, tasks: Sequence[ShardTask]) -> str:
    """sha256 over what decides which image goes into which shard, and how."""
    about = hashlib.sha256(repr((VERSION, job.dataset, job.seed, job.shard_bytes)).encode())
    options = (job.on_bad_mask, job.on_bad_image, job.on_orientation, job.mask_options.describe())
    about.update(repr(options).encode())
    for task in tasks:
        about.update(task.name.encode())
        for source in task.sources:
            about.update(f"{source.name}\0{source.key}\0{source.camid}\n".encode(errors="surrogateescape"))
    return about.hexdigest()
