"""A scanned data set into a shard folder: all of it, or nothing."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .atomic import partial_folder, sync_folder, write_synced
from .checks import check_layout, evaluation_notes
from .errors import ShardError
from .image_policy import (
    OnOrientation,
    OrientationError,
    change_lines,
    check_orientation_policy,
    orientation_message,
)
from .index_limits import fit_index
from .keyed import keyed_bits
from .layouts.market1501 import scan_market1501
from .leftovers import find_leftovers
from .manifest import Manifest, SplitEntry, index_bytes, index_name, shard_name, write_manifest
from .masks.options import MaskOptions, place_masks
from .masks.policy import DEFAULT_MASKS, MaskReport, OnBadMask, check_policy
from .parallel import await_workers, write_shards
from .resume import RECORDS, ShardTask
from .samples import DISTRACTOR_PID, JUNK_PID, Layout, Source
from .writing import WrittenShard, member_bytes, sample_json

SHARD_BYTES = 64_000_000
ARRAY_BYTES = 20_000  # an image inside a larger file: about that of CUHK03 as PNG
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: the manifest it wrote, where, and what was found beside it.

    `differences` are the counts that are not the published ones, `checked` how many were compared. `warnings`
    are what makes the shards useless for most: they end the report.
    """

    out: Path
    manifest: Manifest
    strays: tuple[str, ...]
    notes: tuple[str, ...]
    differences: tuple[str, ...]
    checked: int
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        lines = [f"{self.manifest.dataset} ({self.manifest.layout}) -> {self.out}"]
        for name, split in self.manifest.splits.items():
            size_mb = sum(shard.bytes for shard in split.shards) / 1e6
            others = (
                f" (of them {split.junk} junk, {split.distractors} distractors)"
                if split.junk or split.distractors
                else ""
            )
            lines.append(
                f"{name}: {split.samples} images{others}, {split.identities} identities, "
                f"{len(split.cameras)} cameras, {len(split.shards)} shards, {size_mb:.1f} MB"
            )
            if split.single_image_identities:
                lines.append(f"{name}: {split.single_image_identities} identities have a single image")
            if len(split.cameras) == 1:
                lines.append(f"{name}: all images come from camera {split.cameras[0]}")
        masks = self.manifest.masks
        lines.append(f"masks: {masks.checked} checked, {masks.bad} bad (policy: {masks.policy})")
        lines += [f"masks: {count} {kind}" for kind, count in masks.counts.items() if count]
        lines += [f"masks: {example}" for example in masks.examples]
        lines += self.notes
        lines += [f"NOT AS PUBLISHED: {difference}" for difference in self.differences]
        if self.checked:
            lines.append(f"{self.checked - len(self.differences)} of {self.checked} counts are as published")
        if self.strays:
            lines.append(f"{len(self.strays)} other files ignored: {', '.join(self.strays[:3])}")
        lines.append(f"fingerprint {self.manifest.fingerprint}")
        return lines + list(self.warnings)


def convert_market1501(
    src: Path,
    out: Path,
    *,
    dataset: str | None = None,
    on_bad_mask: OnBadMask = "fail",
    mask_options: MaskOptions = DEFAULT_MASKS,
    on_orientation: OnOrientation = "fail",
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
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
        shard_bytes=shard_bytes,
        seed=seed,
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
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the shard folder `out`: `<split>/000000.tar`, ..., `index/<split>.npy`, and `manifest.json` last.

    The same sources, seed and sizes give the same bytes for any number of `workers` (processes; with more
    than one the calling script needs an `if __name__ == "__main__"`). Everything goes into a hidden sibling
    folder first, is synced and then renamed to `out`. On a failure the sibling is removed; after a kill or
    KeyboardInterrupt the same call keeps its finished shards, once their sha256 is checked. `shard_bytes` is
    the size aimed at: an identity is never divided, so shards may exceed it. `progress(done, total)` is
    called with counts of samples.

    Raises ShardError: `out` is not new or empty, an unreadable image, a bad mask under the policy "fail", a
    split left without samples, no space to write; an image with an EXIF orientation under "fail".
    """
    check_policy(on_bad_mask)
    check_orientation_policy(on_orientation)
    if workers < 1:
        raise ShardError(f"{workers} workers: give at least 1")
    layout = place_masks(layout, mask_options)
    if shard_bytes < 1:
        raise ShardError(f"shard size of {shard_bytes} bytes: give at least 1")
    check_fresh(out)
    odd = check_layout(layout)
    layout = fit_index(layout)
    leftovers = find_leftovers(layout)
    total = sum(map(len, layout.splits.values()))
    with partial_folder(out) as folder:
        tasks = [
            ShardTask(folder, name, number, sources, dataset, on_bad_mask, mask_options, on_orientation)
            for name, number, sources in _dealt(layout, dataset, shard_bytes, seed)
        ]
        resumed, started_afresh = _prepare(folder, layout, tasks)
        kept = sum(len(task.sources) for task in tasks if task.name in resumed)
        try:
            written = _write(folder, tasks, resumed, workers, _Ticker(progress, kept, total))
        except OrientationError as error:
            raise ShardError(orientation_message(error, layout.sources())) from None
        splits = {split: _finish_split(folder, split, written) for split in layout.splits}
        problems = [problem for shard in written for problem in shard.problems]
        masks = MaskReport.of(problems, policy=on_bad_mask, checked=total, form=mask_options.describe())
        manifest = Manifest(dataset, layout.name, seed, shard_bytes, splits, masks)
        for directory in [*splits, "index"]:
            sync_folder(folder / directory)
        write_manifest(folder, manifest)
        shutil.rmtree(folder / RECORDS)
        sync_folder(folder)
    notes = [
        *layout.notes,
        *odd,
        *leftovers.lines(),
        *change_lines(change for shard in written for change in shard.changes),
    ]
    if resumed:
        notes.append(f"{len(resumed)} of {len(tasks)} shards were kept from an interrupted conversion")
    if started_afresh:
        notes.append("an interrupted conversion of other inputs or options was removed")
    warnings = (*evaluation_notes(layout), *leftovers.warnings(total), *masks.warnings())
    return ConversionReport(
        out, manifest, layout.strays, tuple(notes), layout.differences(), len(layout.published), warnings
    )


def _dealt(
    layout: Layout, dataset: str, shard_bytes: int, seed: int
) -> Iterator[tuple[str, int, tuple[Source, ...]]]:
    """Every shard to write: its name, its number in its split, its sources."""
    for split, sources in layout.splits.items():
        for number, part in enumerate(deal(sources, dataset=dataset, shard_bytes=shard_bytes, seed=seed)):
            yield shard_name(split, number), number, tuple(part)


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


def _prepare(
    folder: Path, layout: Layout, tasks: Sequence[ShardTask]
) -> tuple[dict[str, WrittenShard], bool]:
    """Make the folders, find the finished shards by name, and remove all else that an earlier run left.

    The second result: there were finished shards, of other inputs or options.
    """
    records = folder / RECORDS
    records.mkdir(exist_ok=True)
    await_workers(records)
    finished = {task.name: shard for task in tasks if (shard := task.finished()) is not None}
    keep = {folder / name for name in finished} | {task.record for task in tasks if task.name in finished}
    foreign = any(path not in keep for path in records.glob("*.json"))
    for path in folder.rglob("*"):
        if path not in keep and not path.is_dir():
            path.unlink()
    for child in folder.iterdir():
        if child.name not in {*layout.splits, RECORDS}:
            shutil.rmtree(child)
    for split in layout.splits:
        (folder / split).mkdir(exist_ok=True)
    return finished, foreign


def _write(
    folder: Path, tasks: Sequence[ShardTask], finished: dict[str, WrittenShard], workers: int, tick: _Ticker
) -> list[WrittenShard]:
    """All shards in the order of the tasks; those that are finished are not written again."""
    missing = [task for task in tasks if task.name not in finished]
    written = iter(write_shards(missing, workers, tick, folder / RECORDS))
    return [finished[task.name] if task.name in finished else next(written) for task in tasks]


def deal(sources: Sequence[Source], *, dataset: str, shard_bytes: int, seed: int) -> list[list[Source]]:
    """Divide a split's sources among shards of about equal size, near `shard_bytes`.

    Identities stand in an order keyed by (seed, pid), each whole in one shard, its images in source order.
    Junk and distractors are no identities, so their runs may continue in the next shard. Sizes are those of
    the source files.
    """
    pids = np.array([source.pid for source in sources], np.int64)
    by_identity = np.lexsort((np.arange(len(pids)), pids, keyed_bits(seed, pids)))
    pids = pids[by_identity]
    sizes = np.array([_estimate(sources[position], dataset) for position in by_identity], np.int64)
    # A unit is what must not be divided: an identity, or one image of junk or distractors.
    starts_unit = np.r_[True, (pids[1:] != pids[:-1]) | (pids[1:] <= DISTRACTOR_PID)]
    unit_start_bytes = (np.cumsum(sizes) - sizes)[starts_unit]
    total = int(sizes.sum())
    count = -(-total // shard_bytes)
    shard_of_unit = unit_start_bytes * count // total
    # A unit larger than a shard leaves numbers unused: renumber.
    shard_of_unit = np.unique(shard_of_unit, return_inverse=True)[1]
    shard_of = shard_of_unit[np.cumsum(starts_unit) - 1]
    parts: list[list[Source]] = [[] for _ in range(int(shard_of[-1]) + 1)]
    for position, shard in zip(by_identity, shard_of, strict=True):
        parts[shard].append(sources[position])
    return parts


def _estimate(source: Source, dataset: str) -> int:
    """A sample's bytes in a tar file, from the file sizes; a missing mask counts as one block."""
    sizes = [len(sample_json(source, dataset))] + [ARRAY_BYTES] * (source.array is not None)
    for path in (source.path if source.array is None else None, source.mask_path):
        try:
            sizes.append(path.stat().st_size if path is not None else 1)
        except OSError:
            sizes.append(1)  # writing decides what a missing file means
    return sum(map(member_bytes, sizes))


def _finish_split(folder: Path, split: str, written: Sequence[WrittenShard]) -> SplitEntry:
    """Write the split's index and sum up its entry. `written`: the shards of all splits."""
    written = [shard for shard in written if shard.entry.name.startswith(f"{split}/")]
    rows = np.concatenate([shard.rows for shard in written])
    if not len(rows):
        raise ShardError(
            f"split {split}: the mask policy skipped every sample; are the masks where they should be?"
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
    if not out.is_dir():
        raise ShardError(f"{out}: is a file; give a folder that does not exist yet")
    names = sorted(child.name for child in out.iterdir())
    if names:
        holds = "already holds shards" if "manifest.json" in names else f"is not empty (it holds {names[0]})"
        raise ShardError(f"{out}: {holds}; give a new folder or remove this one")
