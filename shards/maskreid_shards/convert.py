"""A scanned data set into a shard folder: all of it, or nothing."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .atomic import partial_folder, sync_folder
from .errors import ShardError
from .keyed import keyed_bits
from .layouts.market1501 import scan_market1501
from .manifest import Manifest, SplitEntry, index_bytes, index_name, shard_name, write_manifest, write_synced
from .mask_options import MaskOptions, place_masks
from .masks import DEFAULT_MASKS, MaskProblem, MaskReport, OnBadMask, check_policy
from .samples import DISTRACTOR_PID, JUNK_PID, Layout, Source
from .writing import WrittenShard, member_bytes, sample_json, write_shard

SHARD_BYTES = 64 * 1024 * 1024
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: the manifest it wrote, where, and what was found beside it.

    `differences` are the counts that are not the published ones, `checked` how many were compared.
    """

    out: Path
    manifest: Manifest
    strays: tuple[str, ...]
    notes: tuple[str, ...]
    differences: tuple[str, ...]
    checked: int

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
        return lines


def convert_market1501(
    src: Path,
    out: Path,
    *,
    dataset: str | None = None,
    on_bad_mask: OnBadMask = "fail",
    mask_options: MaskOptions = DEFAULT_MASKS,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
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
        shard_bytes=shard_bytes,
        seed=seed,
        progress=progress,
    )


def convert(
    layout: Layout,
    out: Path,
    *,
    dataset: str,
    on_bad_mask: OnBadMask = "fail",
    mask_options: MaskOptions = DEFAULT_MASKS,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the shard folder `out`: `<split>/000000.tar`, ..., `index/<split>.npy`, and `manifest.json` last.

    The same sources, seed and sizes give the same bytes. Everything goes into a hidden sibling folder first,
    is synced and then renamed to `out`; on any failure the sibling is removed, and one left by a killed run
    is removed by the next. `shard_bytes` is the size aimed at: an identity is never divided, so shards may
    exceed it. `progress(done, total)` is called with counts of samples.

    Raises ShardError: `out` is not new or empty, an unreadable image, a bad mask under the policy "fail", a
    split left without samples, no space to write.
    """
    check_policy(on_bad_mask)
    layout = place_masks(layout, mask_options)
    if shard_bytes < 1:
        raise ShardError(f"shard size of {shard_bytes} bytes: give at least 1")
    _check_fresh(out)
    total = sum(map(len, layout.splits.values()))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with partial_folder(out) as folder:
        splits: dict[str, SplitEntry] = {}
        problems: list[MaskProblem] = []
        for split, sources in layout.splits.items():
            (folder / split).mkdir()
            written = [
                write_shard(
                    folder,
                    shard_name(split, number),
                    number,
                    part,
                    dataset=dataset,
                    on_bad_mask=on_bad_mask,
                    mask_options=mask_options,
                    tick=tick,
                )
                for number, part in enumerate(
                    deal(sources, dataset=dataset, shard_bytes=shard_bytes, seed=seed)
                )
            ]
            problems += [problem for shard in written for problem in shard.problems]
            splits[split] = _finish_split(folder, split, written)
        masks = MaskReport.of(problems, policy=on_bad_mask, checked=total, form=mask_options.describe())
        manifest = Manifest(dataset, layout.name, seed, shard_bytes, splits, masks)
        for directory in [*splits, "index"]:
            sync_folder(folder / directory)
        write_manifest(folder, manifest)
        sync_folder(folder)
    return ConversionReport(
        out, manifest, layout.strays, layout.notes, layout.differences(), len(layout.published)
    )


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
    sizes = [len(sample_json(source, dataset))]
    for path in (source.path, source.mask_path):
        try:
            sizes.append(path.stat().st_size if path is not None else 1)
        except OSError:
            sizes.append(1)  # writing decides what a missing file means
    return sum(map(member_bytes, sizes))


def _finish_split(folder: Path, split: str, written: Sequence[WrittenShard]) -> SplitEntry:
    """Write the split's index and sum up its entry."""
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


def _check_fresh(out: Path) -> None:
    """Refuse an output that holds anything: shards are never overwritten or mixed."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ShardError(f"{out}: is a file; give a folder that does not exist yet")
    names = sorted(child.name for child in out.iterdir())
    if names:
        holds = "already holds shards" if "manifest.json" in names else f"is not empty (it holds {names[0]})"
        raise ShardError(f"{out}: {holds}; give a new folder or remove this one")
