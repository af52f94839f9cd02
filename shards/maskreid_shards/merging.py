"""Finished shard folders as one training set: images and masks are copied from shard to shard, not read again
as pictures."""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atomic import create, partial_folder, remove_folder, sync_folder
from .bad_inputs import ImageReport
from .convert import check_fresh, finish_split
from .errors import ShardError
from .manifest import INDEX_DTYPE, Manifest, ShardEntry, shard_name, write_manifest
from .masks.policy import MaskReport, OnBadMask
from .reading import ShardSet, open_shards
from .report import ConversionReport
from .samples import Source, sample_key
from .writing import BLOCK, FORMAT_OF_SUFFIX, ReadImage, TarWriter, WrittenShard, append_sample, sample_json

SPLIT = "train"
POLICIES: tuple[OnBadMask, ...] = ("fail", "skip", "full")


@dataclass(frozen=True)
class _Part:
    """A folder that is merged: `pids` and `camids` are sorted, and the numbers that replace them go on from
    those of the folders before it."""

    name: str
    shards: ShardSet
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    first_pid: int
    first_camid: int


def merge_shards(
    folders: Mapping[str, Path | str], out: Path, *, progress: Callable[[int, int], None] | None = None
) -> ConversionReport:
    """Write `out` from the train splits of finished folders, each under its name: every shard of theirs is
    one of `out`, with the same images and masks, byte for byte, and pids and cameras that follow those of the
    folders before it. Test splits are left out.

    Samples are checked against their crc32. In the report and the manifest, counts of bad masks and images
    are summed up; the mask policy is the one that changed most (full, skip, fail). A failure or a kill leaves
    `out` as it was; the next call begins anew.

    Raises ShardError: see `open_shards`; a folder without train, or the same shards twice.
    """
    check_fresh(out)
    parts = _parts(folders)
    total, done, number = sum(len(part.shards.split(SPLIT)) for part in parts), 0, 0
    written: list[WrittenShard] = []
    with partial_folder(out) as folder:
        for left in folder.iterdir():  # by a killed call
            remove_folder(left) if left.is_dir() else left.unlink()
        (folder / SPLIT).mkdir()
        for part in parts:
            for old in range(len(part.shards.split(SPLIT).entry.shards)):
                written.append(_copy(part, old, folder, number))
                number += 1
                done += len(written[-1].rows)
                if progress is not None:
                    progress(done, total)
        manifests = [part.shards.manifest for part in parts]
        manifest = Manifest(
            "merge",
            "merge",
            0,
            max(manifest.shard_bytes for manifest in manifests),
            {SPLIT: finish_split(folder, SPLIT, written)},
            _masks(parts),
            _images(parts),
        )
        for directory in (SPLIT, "index"):
            sync_folder(folder / directory)
        write_manifest(folder, manifest)
        sync_folder(folder)
    notes = [
        f"{part.name}: {len(part.shards.split(SPLIT))} images, pids {part.first_pid} to "
        f"{part.first_pid + len(part.pids) - 1}, cameras {part.first_camid} to "
        f"{part.first_camid + len(part.camids) - 1}"
        for part in parts
    ]
    return ConversionReport(out, manifest, (), tuple(notes), (), 0)


def _parts(folders: Mapping[str, Path | str]) -> list[_Part]:
    if not folders:
        raise ShardError("nothing to merge: give NAME=SHARDS, once for each folder")
    parts: list[_Part] = []
    pid = camid = 1
    for name, location in folders.items():
        opened = open_shards(location)
        split = opened.split(SPLIT)
        for other in parts:
            if other.shards.split(SPLIT).fingerprint == split.fingerprint:
                raise ShardError(f"{name}: holds the same shards as {other.name}; give each data set once")
        pids, camids = np.unique(split.pids), np.unique(split.camids)
        parts.append(_Part(name, opened, pids, camids, pid, camid))
        pid, camid = pid + len(pids), camid + len(camids)
    return parts


def _copy(part: _Part, old: int, folder: Path, number: int) -> WrittenShard:
    """Shard `old` of a part as shard `number` of the new folder."""
    split = part.shards.split(SPLIT)
    entry = split.entry.shards[old]
    index = split.index[split.index["shard"] == old]
    rows = np.zeros(len(index), INDEX_DTYPE)
    name = shard_name(SPLIT, number)
    with create(folder / name) as file:
        tar = TarWriter(file)
        for at, (row, image, suffix, mask, about) in enumerate(_samples(part, entry, index)):
            pid = part.first_pid + int(np.searchsorted(part.pids, row["pid"]))
            camid = part.first_camid + int(np.searchsorted(part.camids, row["camid"]))
            key = sample_key(pid, int(bytes(row["key"]).decode().rpartition("_")[2]))
            source = Source(
                folder, None, pid, camid, SPLIT, key, f"{part.name}/{about['source']}", dataset=part.name
            )
            own = json.loads(sample_json(source, "merge"))
            new_json = json.dumps({**about, **own}, sort_keys=True, separators=(",", ":")).encode()
            rows[at] = append_sample(tar, source, ReadImage(image, (0, 0), suffix), mask, new_json, number)
        tar.finish()
    identities = int((np.unique(rows["pid"]) > 0).sum())
    new = ShardEntry(name, tar.offset, tar.digest.hexdigest(), len(rows), identities)
    return WrittenShard(new, rows, ())


def _samples(
    part: _Part, entry: ShardEntry, index: NDArray[np.void]
) -> Iterator[tuple[np.void, bytes, str, bytes, dict[str, Any]]]:
    """Each record of a shard with its image, that one's suffix, its mask, and its json."""
    store = part.shards.store
    for row in index:
        key = bytes(row["key"]).decode()
        where = f"{store.where(entry.name)}: {key}"
        start = int(row["image_offset"]) - BLOCK
        stop = int(row["json_offset"]) + int(row["json_length"])
        data = store.fetch(entry, start, stop - start, key)
        members = []
        for what in ("image", "mask", "json"):
            first = int(row[f"{what}_offset"]) - start
            member = data[first : first + int(row[f"{what}_length"])]
            if zlib.crc32(member) != row[f"{what}_crc32"]:
                raise ShardError(f"{where}: the {what} does not fit its crc32; restore it or convert again")
            members.append(member)
        suffix = Path(data[:100].rstrip(b"\0").decode("ascii", "replace")).suffix
        if suffix not in FORMAT_OF_SUFFIX:
            raise ShardError(f"{where}: no image's name stands before it; restore it or convert again")
        try:
            about = json.loads(members[2])
            yield row, members[0], suffix, members[1], {**about, "source": str(about["source"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{where}: its json member is not the format's; convert again") from error


def _masks(parts: list[_Part]) -> MaskReport:
    reports = {part.name: part.shards.manifest.masks for part in parts}
    counts: Counter[str] = Counter()
    for report in reports.values():
        counts.update(dict.fromkeys(report.counts, 0))
        counts.update(report.counts)
    examples = [f"{name}/{example}" for name, report in reports.items() for example in report.examples]
    forms = sorted({report.form for report in reports.values()} - {""})
    policy = max((report.policy for report in reports.values()), key=POLICIES.index)
    checked = sum(report.checked for report in reports.values())
    return MaskReport(policy, checked, dict(counts), tuple(examples), "; ".join(forms))


def _images(parts: list[_Part]) -> ImageReport | None:
    reports = {part.name: part.shards.manifest.images for part in parts}
    found = {name: report for name, report in reports.items() if report is not None}
    if not found:
        return None
    counts: Counter[str] = Counter()
    for report in found.values():
        counts.update(report.counts)
    examples = [f"{name}/{example}" for name, report in found.items() for example in report.examples]
    return ImageReport("skip", sum(r.checked for r in found.values()), dict(counts), tuple(examples))
