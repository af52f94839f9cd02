"""One split's index, checked against the manifest and in itself."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..manifest import INDEX_DTYPE, SplitEntry, odd_keys
from ..opening import regular_only
from ..samples import DISTRACTOR_PID, JUNK_PID
from .problems import Problem
from .shard import PARTS, pid_of_key

_RECORD = INDEX_DTYPE.itemsize


def read_index(
    folder: Path, name: str, entry: SplitEntry | None
) -> tuple[NDArray[np.void] | None, list[Problem]]:
    """The records of the index `folder/name`, memory-mapped, None where they cannot be read, and what is
    wrong with its bytes."""
    path = folder / name
    problems = []
    if entry is not None:
        size = path.stat().st_size
        if size != entry.index_bytes:
            detail = f"{size} bytes, the manifest says {entry.index_bytes}"
            problems.append(Problem(name, None, None, "index-size", detail))
        with open(path, "rb", opener=regular_only) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.index_sha256:
                problems.append(Problem(name, None, None, "index-sha256", ""))
    try:
        rows: NDArray[np.void] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises nearly anything on arbitrary bytes; it never unpickles here
        return None, [*problems, Problem(name, None, None, "index-unreadable", str(error))]
    if rows.dtype != INDEX_DTYPE or rows.ndim != 1:
        detail = f"an array of another form: {str(rows.dtype)[:40]} of {rows.shape}"
        return None, [*problems, Problem(name, None, None, "index-unreadable", detail)]
    return rows, problems


def verify_records(
    name: str, rows: NDArray[np.void], entry: SplitEntry | None, shard_bytes: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Which records can be looked up in their shards, (N,) bool, and what is wrong with the index `name`.

    shard_bytes: (shards,) int64, the size of each.
    """
    start = getattr(rows, "offset", 0)  # of the memory map: where the first record is, in bytes

    def at(kind: str, number: int, detail: str = "") -> Problem:
        return Problem(name, _text(rows["key"][number]), start + number * _RECORD, kind, detail)

    possible = rows["shard"] < len(shard_bytes)
    limit = np.where(possible, np.r_[shard_bytes, 0][np.minimum(rows["shard"], len(shard_bytes))], 0)
    for part in PARTS:
        # No sum, which could overflow.
        possible &= (rows[f"{part}_offset"] >= 512) & (
            rows[f"{part}_offset"] <= limit - rows[f"{part}_length"].astype(np.int64)
        )
    problems = [at("index-record", int(i), "outside of its shard") for i in np.flatnonzero(~possible)]
    problems += [at("index-record", int(i), "a key of other characters") for i in odd_keys(rows["key"])]
    for number, (key, pid, camid) in enumerate(zip(rows["key"], rows["pid"], rows["camid"], strict=True)):
        if pid_of_key(_text(key)) not in (None, pid) or pid < JUNK_PID or camid < 0:
            problems.append(at("index-record", number, f"pid {pid} and camera {camid} under this key"))
    problems += [at("index-order", i) for i in _out_of_order(rows)]
    problems += [at("duplicate-key", i) for i in _second_of(rows["key"])]
    problems += [at("identity-divided", i, f"identity {rows['pid'][i]}") for i in _divided(rows)]
    if entry is not None:
        problems += _counts(name, rows, entry)
    return possible, problems


def _out_of_order(rows: NDArray[np.void]) -> list[int]:
    before, after = rows[:-1], rows[1:]
    wrong = after["shard"] < before["shard"]
    wrong |= (after["shard"] == before["shard"]) & (after["image_offset"] <= before["json_offset"])
    inside = (rows["image_offset"] >= rows["mask_offset"]) | (rows["mask_offset"] >= rows["json_offset"])
    return sorted({*(np.flatnonzero(wrong) + 1).tolist(), *np.flatnonzero(inside).tolist()})


def _second_of(keys: NDArray[np.bytes_]) -> list[int]:
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return sorted(order[1:][same].tolist())


def _divided(rows: NDArray[np.void]) -> list[int]:
    """Where an identity goes on that had ended, or goes on in another shard; junk and distractors may."""
    pids, shards = rows["pid"], rows["shard"]
    starts = np.flatnonzero(np.r_[len(rows) > 0, (pids[1:] != pids[:-1]) | (shards[1:] != shards[:-1])])
    starts = starts[pids[starts] > DISTRACTOR_PID]
    return [int(starts[i]) for i in _second_of(pids[starts])]


def _counts(name: str, rows: NDArray[np.void], entry: SplitEntry) -> Iterator[Problem]:
    pids, images = np.unique(rows["pid"], return_counts=True)
    people = pids > DISTRACTOR_PID
    found = {
        "samples": len(rows),
        "identities": int(people.sum()),
        "single_image_identities": int((people & (images == 1)).sum()),
        "junk": int(images[pids == JUNK_PID].sum()),
        "distractors": int(images[pids == DISTRACTOR_PID].sum()),
        "cameras": tuple(np.unique(rows["camid"]).tolist()),
    }
    for what, value in found.items():
        if value != getattr(entry, what):
            detail = f"{what}: {value} in the index, {getattr(entry, what)} in the manifest"
            yield Problem(name, None, None, "counts", detail)
    for number, shard in enumerate(entry.shards):
        mine = rows["pid"][rows["shard"] == number]
        here = len(mine), len(np.unique(mine[mine > DISTRACTOR_PID]))
        if here != (shard.samples, shard.identities):
            said = f"{shard.samples} of {shard.identities}"
            detail = f"{here[0]} samples of {here[1]} identities, the manifest has {said}"
            yield Problem(shard.name, None, None, "counts", detail)


def _text(key: bytes) -> str:
    return key.decode("ascii", "backslashreplace")
