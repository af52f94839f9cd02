"""Finished shard folders as one training set: images and masks are copied from shard to shard, not read again
as pictures."""

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atomic import create, partial_folder, plain_folder, remove_folder, sync_folder, write_atomically
from .bad_inputs import ImageReport
from .convert import check_fresh, finish_split, has_finished_shards
from .errors import ShardError
from .manifest import INDEX_DTYPE, VERSION, Manifest, ShardEntry, shard_name, write_manifest
from .masks.policy import MaskReport, OnBadMask
from .opening import read_json, regular_only
from .reading import ShardSet, open_shards
from .report import ConversionReport
from .resume import RECORDS
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
    are summed up; the mask policy is the one that changed most (full, skip, fail). What a folder's manifest
    says of its numbering and of the network that made its masks goes into the new one, under its name. A
    failure or a kill leaves `out` as it was; the same call keeps the shards that were finished.

    Raises ShardError: see `open_shards`; a folder without train, or the same shards twice.
    """
    check_fresh(out)
    parts = _parts(folders)
    total, done, number = sum(len(part.shards.split(SPLIT)) for part in parts), 0, 0
    written: list[WrittenShard] = []
    with partial_folder(out, has_finished_shards) as folder:
        kept = _prepare(folder, parts)
        for part in parts:
            for old in range(len(part.shards.split(SPLIT).entry.shards)):
                written.append(kept.get(number) or _copy(part, old, folder, number))
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
            _numbering(parts),
        )
        for directory in (SPLIT, "index"):
            sync_folder(folder / directory)
        write_manifest(folder, manifest)
        remove_folder(folder / RECORDS)
        sync_folder(folder)
    notes = [
        f"{part.name}: {len(part.shards.split(SPLIT))} images, pids {part.first_pid} to "
        f"{part.first_pid + len(part.pids) - 1}, cameras {part.first_camid} to "
        f"{part.first_camid + len(part.camids) - 1}"
        for part in parts
    ]
    if kept:
        notes.append(f"{len(kept)} of {number} shards were kept from an interrupted merge")
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


def _prepare(folder: Path, parts: list[_Part]) -> dict[int, WrittenShard]:
    """The shards that a killed call of the same merge has finished, by their numbers; all else is removed."""
    plain_folder(folder / RECORDS)
    plain_folder(folder / SPLIT)
    olds = [(part, old) for part in parts for old in range(len(part.shards.split(SPLIT).entry.shards))]
    kept: dict[int, WrittenShard] = {}
    for number, (part, old) in enumerate(olds):
        if shard := _finished(part, old, folder, number):
            kept[number] = shard
    keep = {path for number in kept for path in (folder / shard_name(SPLIT, number), _record(folder, number))}
    for path in folder.rglob("*"):
        if path.is_symlink() or (path not in keep and not path.is_dir()):
            path.unlink()
    for child in folder.iterdir():
        if child.name not in (SPLIT, RECORDS):
            remove_folder(child)
    return kept


def _record(folder: Path, number: int) -> Path:
    return folder / RECORDS / f"{number:06d}.json"


def _origin(part: _Part, old: int) -> list[object]:
    """What decides the bytes of a merged shard, beside its number."""
    split = part.shards.split(SPLIT)
    return [VERSION, part.name, split.fingerprint, old, part.first_pid, part.first_camid]


def _finished(part: _Part, old: int, folder: Path, number: int) -> WrittenShard | None:
    try:
        record = read_json(_record(folder, number))
        entry = ShardEntry(**record["entry"])
        with open(folder / shard_name(SPLIT, number), "rb", opener=regular_only) as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        if not whole or record["origin"] != _origin(part, old):
            return None
        return WrittenShard(entry, np.frombuffer(base64.b64decode(record["rows"]), INDEX_DTYPE), ())
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or of a killed machine


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
    rows_text = base64.b64encode(rows.tobytes()).decode()
    record = {"origin": _origin(part, old), "entry": asdict(new), "rows": rows_text}
    write_atomically(_record(folder, number), json.dumps(record).encode())
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
    return MaskReport(policy, checked, dict(counts), tuple(examples), "; ".join(forms), _maker(reports))


def _maker(reports: dict[str, MaskReport]) -> dict[str, str]:
    """Who made the masks; of several, each field with the folders' names."""
    makers = {name: report.maker for name, report in reports.items()}
    first, *others = makers.values()
    if all(maker == first for maker in others):
        return first
    fields = dict.fromkeys(field for maker in makers.values() for field in maker)
    return {
        field: "; ".join(f"{name}: {maker[field]}" for name, maker in makers.items() if field in maker)
        for field in fields
    }


def _numbering(parts: list[_Part]) -> dict[str, dict[str, int]]:
    """The numbers that names of identities and cameras have now, each name after its folder's."""
    found: dict[str, dict[str, int]] = {}
    for part in parts:
        for what, old, first in (
            ("pid", part.pids, part.first_pid),
            ("camid", part.camids, part.first_camid),
        ):
            now = {number: first + rank for rank, number in enumerate(old.tolist())}
            named = part.shards.manifest.numbering.get(what, {})
            numbers = {f"{part.name}/{text}": now[number] for text, number in named.items() if number in now}
            if numbers:
                found.setdefault(what, {}).update(numbers)
    return found


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
