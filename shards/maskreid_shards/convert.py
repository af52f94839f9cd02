"""A scanned data set into a shard folder: all of it, or nothing."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from .atomic import partial_folder, plain_folder, remove_folder, sync_folder, write_synced
from .bad_inputs import BadInputs, ImageReport, OnBadImage
from .checks import evaluation_notes
from .errors import ShardError
from .image_policy import OnOrientation, OrientationError, change_lines, orientation_message
from .job import SHARD_BYTES, Job, checked_job
from .layouts.market1501 import scan_market1501
from .manifest import Manifest, SplitEntry, index_bytes, index_name, write_manifest
from .masks.options import MaskOptions
from .masks.policy import DEFAULT_MASKS, MaskReport, OnBadMask
from .parallel import await_workers, write_shards
from .precheck import check_inputs
from .report import ConversionReport
from .resume import RECORDS, ShardTask
from .samples import DISTRACTOR_PID, JUNK_PID, Layout
from .writing import WrittenShard

Progress = Callable[[int, int], None]
Gather = Callable[[Path, Sequence[ShardTask]], dict[str, WrittenShard]]


def convert_market1501(
    src: Path,
    out: Path,
    *,
    dataset: str | None = None,
    on_bad_mask: OnBadMask = "fail",
    mask_options: MaskOptions = DEFAULT_MASKS,
    on_orientation: OnOrientation = "fail",
    on_bad_image: OnBadImage = "fail",
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    follow_links: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a folder in the Market-1501 layout.

    `dataset`, by default the folder's name, is written into every sample. See `convert` for the rest,
    `scan_market1501` for the layout.
    """
    src = Path(src)
    name = dataset if dataset is not None else src.resolve().name
    layout = scan_market1501(src)
    return convert(
        layout,
        Path(out),
        dataset=name,
        on_bad_mask=on_bad_mask,
        mask_options=mask_options,
        on_orientation=on_orientation,
        on_bad_image=on_bad_image,
        shard_bytes=shard_bytes,
        seed=seed,
        follow_links=follow_links,
        workers=workers,
        progress=progress,
    )


def convert(
    layout: Layout,
    out: Path,
    *,
    dataset: str,
    on_bad_mask: OnBadMask = "fail",
    mask_options: MaskOptions = DEFAULT_MASKS,
    on_orientation: OnOrientation = "fail",
    on_bad_image: OnBadImage = "fail",
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    follow_links: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the shard folder `out`: `<split>/000000.tar`, ..., `index/<split>.npy`, and `manifest.json` last.

    The same sources, seed and sizes give the same bytes for any number of `workers` (processes; with more
    than one the calling script needs an `if __name__ == "__main__"`). Everything goes into a hidden sibling
    folder first, is synced and then renamed to `out`. After a failure, a kill or KeyboardInterrupt the same
    call keeps its finished shards, once their sha256 is checked; where there is none, the sibling is removed.
    Before the first byte all inputs are looked at (`check_inputs`); all bad ones are named together, up to
    `bad_inputs.CAP`, or left out and counted (`on_bad_image`, `on_bad_mask`). `follow_links`: read images and
    masks that are links out of the data set (`check_links`) too. `shard_bytes` is the size aimed at: an
    identity is never divided, so shards may exceed it. `progress(done, total)` is called with counts of
    samples.

    Raises ShardError: `out` is not new or empty, or a mount point, a bad image or mask under the policy
    "fail", a split left without samples, no space to write; an image with an EXIF orientation under "fail";
    links out of the data set that are not to be followed.
    """
    if workers < 1:
        raise ShardError(f"{workers} workers: give at least 1")
    check_fresh(out)
    job = checked_job(
        layout,
        dataset=dataset,
        on_bad_mask=on_bad_mask,
        mask_options=mask_options,
        on_orientation=on_orientation,
        on_bad_image=on_bad_image,
        shard_bytes=shard_bytes,
        seed=seed,
        follow_links=follow_links,
    )
    return write_job(job, out, workers=workers, progress=progress)


def write_job(
    job: Job, out: Path, *, workers: int, progress: Progress | None, gather: Gather | None = None
) -> ConversionReport:
    """The shards, the indexes and the manifest of a checked conversion; see `convert`.

    `gather` brings the shards, all of them finished, in place of an earlier run.
    """
    layout = job.layout
    with partial_folder(out, has_finished_shards) as folder:
        tasks = job.tasks(folder)
        finished, foreign = prepare(folder, layout, tasks) if gather is None else ({}, False)
        if gather is not None:
            finished = gather(folder, tasks)
        written = write_missing(job, folder, tasks, finished, workers, progress)
        splits = {split: finish_split(folder, split, written) for split in layout.splits}
        left_out = [bad for shard in written for bad in shard.left_out]
        problems = [problem for shard in written for problem in shard.problems]
        masks = MaskReport.of(
            problems,
            policy=job.on_bad_mask,
            checked=job.total - len(left_out),
            form=job.mask_options.describe(),
            maker=job.maker,
        )
        images = ImageReport.of(left_out, checked=job.total)
        manifest = Manifest(
            job.dataset, layout.name, job.seed, job.shard_bytes, splits, masks, images, dict(layout.numbering)
        )
        for directory in [*splits, "index"]:
            sync_folder(folder / directory)
        write_manifest(folder, manifest)
        remove_folder(folder / RECORDS)
        sync_folder(folder)
    notes = [
        *layout.notes,
        *job.odd,
        *job.links,
        *job.leftovers.lines(),
        *change_lines(change for shard in written for change in shard.changes),
    ]
    if finished and gather is None:
        notes.append(f"{len(finished)} of {len(tasks)} shards were kept from an interrupted conversion")
    if foreign:
        notes.append("an interrupted conversion of other inputs or options was removed")
    warnings = (
        *evaluation_notes(layout),
        *layout.warnings,
        *job.leftovers.warnings(job.total),
        *(images.warnings() if images is not None else ()),
        *masks.warnings(),
        *job.warnings,
    )
    return ConversionReport(
        out, manifest, layout.strays, tuple(notes), layout.differences(), len(layout.published), warnings
    )


def has_finished_shards(folder: Path) -> bool:
    """Whether an interrupted or failed conversion has left something that its next run keeps."""
    return any((folder / RECORDS).glob("*.json"))


def write_missing(
    job: Job,
    folder: Path,
    tasks: Sequence[ShardTask],
    finished: dict[str, WrittenShard],
    workers: int,
    progress: Progress | None,
) -> list[WrittenShard]:
    """All shards in the order of the tasks; those that are finished are not written again.

    Raises ShardError, which says what is kept.
    """
    missing = [task for task in tasks if task.name not in finished]
    kept = sum(len(task.sources) for task in tasks if task.name in finished)
    tick = _Ticker(progress, kept, sum(len(task.sources) for task in tasks))
    try:
        check_inputs(
            (source for task in missing for source in task.sources),
            folder,
            on_bad_image=job.on_bad_image,
            on_bad_mask=job.on_bad_mask,
        )
        written = iter(write_shards(missing, workers, tick, folder / RECORDS))
    except OrientationError as error:
        message = orientation_message(error, job.layout.sources())
        raise ShardError(f"{message}{_what_is_kept(folder)}") from None
    except BadInputs as error:
        raise ShardError(f"{error}{_what_is_kept(folder)}") from None
    return [finished[task.name] if task.name in finished else next(written) for task in tasks]


def _what_is_kept(folder: Path) -> str:
    count = sum(1 for _ in (folder / RECORDS).glob("*.json"))
    shards = f"{count} finished shard{'s are' if count > 1 else ' is'} kept in {folder}"
    return f" ({shards}: the same command goes on)" if count else ""


class _Ticker:
    """Counts samples for `progress`."""

    def __init__(self, progress: Progress | None, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total
        if done:
            self(0)

    def __call__(self, samples: int) -> None:
        self.done += samples
        if self.progress is not None:
            self.progress(self.done, self.total)


def prepare(folder: Path, layout: Layout, tasks: Sequence[ShardTask]) -> tuple[dict[str, WrittenShard], bool]:
    """Make the folders, find the finished shards by name, and remove all else that an earlier run left.

    The second result: there were finished shards, of other inputs or options.
    """
    records = folder / RECORDS
    plain_folder(records)
    await_workers(records)
    finished = {task.name: shard for task in tasks if (shard := task.finished()) is not None}
    kept = [task for task in tasks if task.name in finished]
    foreign = any(path not in {task.record for task in kept} for path in records.glob("*.json"))
    keep_only(folder, layout, kept)
    return finished, foreign


def keep_only(folder: Path, layout: Layout, tasks: Iterable[ShardTask]) -> None:
    """Remove all but the shards of these tasks and their records, and make the folders."""
    keep = {path for task in tasks for path in (folder / task.name, task.record)}
    for path in folder.rglob("*"):
        if path.is_symlink() or (path not in keep and not path.is_dir()):
            path.unlink()
    for child in folder.iterdir():
        if child.name not in {*layout.splits, RECORDS}:
            remove_folder(child)
    for split in layout.splits:
        (folder / split).mkdir(exist_ok=True)


def finish_split(folder: Path, split: str, written: Sequence[WrittenShard]) -> SplitEntry:
    """Write the split's index and sum up its entry. `written`: the shards of all splits."""
    written = [shard for shard in written if shard.entry.name.startswith(f"{split}/")]
    rows = np.concatenate([shard.rows for shard in written])
    if not len(rows):
        raise ShardError(
            f"split {split}: every sample was left out; are its images sound, and the masks where they "
            "should be?"
        )
    data = index_bytes(rows)
    name = index_name(split)
    (folder / name).parent.mkdir(exist_ok=True)
    write_synced(folder / name, data)
    pids, counts = np.unique(rows["pid"], return_counts=True)
    return SplitEntry(
        samples=len(rows),
        identities=int((pids > DISTRACTOR_PID).sum()),
        single_image_identities=int(((pids > DISTRACTOR_PID) & (counts == 1)).sum()),
        junk=int(counts[pids == JUNK_PID].sum()),
        distractors=int(counts[pids == DISTRACTOR_PID].sum()),
        cameras=tuple(int(camid) for camid in np.unique(rows["camid"])),
        shards=tuple(shard.entry for shard in written),
        index=name,
        index_bytes=len(data),
        index_sha256=hashlib.sha256(data).hexdigest(),
    )


def check_fresh(out: Path) -> None:
    """Refuse an output that holds anything: shards are never overwritten or mixed."""
    if not os.path.lexists(out):
        return
    if os.path.ismount(out):
        raise ShardError(
            f"{out}: is a mount point, and shards appear by renaming a folder to it, which nobody can; give "
            f"a new folder in it, such as {out / 'shards'}"
        )
    if not out.is_dir():
        raise ShardError(f"{out}: is a file; give a folder that does not exist yet")
    names = sorted(child.name for child in out.iterdir())
    if names:
        holds = "already holds shards" if "manifest.json" in names else f"is not empty (it holds {names[0]})"
        raise ShardError(f"{out}: {holds}; give a new folder or remove this one")
