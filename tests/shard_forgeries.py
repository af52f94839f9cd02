"""Hostile shard folders, for tests: index and manifest vouch for what the shards hold. Functions as in
`shard_damages`."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from maskreid_shards.manifest import INDEX_DTYPE, index_bytes, read_manifest, write_manifest
from shard_damages import INDEX, PARTS, SHARD, Base, Expected, Member, picture


def header(member: Member, length: int | None = None) -> bytes:
    """A ustar header, written here anew: the format's, with a right checksum, whatever the name and type."""
    size = len(member.data) if length is None else length
    block = bytearray(512)
    block[0:100] = member.name.encode().ljust(100, b"\0")
    block[100:124] = b"0000644\0" + 2 * b"0000000\0"
    block[124:148] = b"%011o\0" % size + b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = member.type
    block[157:257] = member.link.ljust(100, b"\0")
    block[257:265] = b"ustar\00000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar(members: list[Member]) -> tuple[bytes, list[int]]:
    """The file, and the offset of every member's header."""
    data, headers = b"", []
    for member in members:
        headers.append(len(data))
        data += header(member) + member.data + bytes(-len(member.data) % 512)
    return data + bytes(1024), headers


def untar(data: bytes) -> tuple[list[Member], list[int]]:
    members, headers, position = [], [], 0
    while data[position]:
        name = data[position : position + 100].rstrip(b"\0").decode()
        size = int(data[position + 124 : position + 135], 8)
        members.append(Member(name, data[position + 512 : position + 512 + size]))
        headers.append(position)
        position += 512 + size + -size % 512
    return members, headers


def forge(
    folder: Path, members: list[Member], edit: Callable[[np.ndarray], object] = lambda rows: None
) -> list[int]:
    """Put `members` into the first shard, with an index of their complete samples and a manifest that
    fits."""
    data, headers = tar(members)
    (folder / SHARD).write_bytes(data)
    found: dict[str, dict[str, tuple[int, bytes]]] = {}
    for member, start in zip(members, headers, strict=True):
        suffix = member.name.partition(".")[2]
        if suffix in PARTS and member.type == b"0":
            found.setdefault(member.key, {}).setdefault(PARTS[suffix], (start + 512, member.data))
    complete = [(key, parts) for key, parts in found.items() if len(parts) == 3]
    rows = np.zeros(len(complete), INDEX_DTYPE)
    for row, (key, parts) in zip(rows, complete, strict=True):
        row["key"], row["pid"] = key.encode(), int(key[1:9]) if key[1:9].isdigit() else 1
        row["camid"] = int(key[-5:]) + 1 if key[-5:].isdigit() else 1
        for part, (offset, content) in parts.items():
            row[f"{part}_offset"], row[f"{part}_length"] = offset, len(content)
            row[f"{part}_crc32"] = zlib.crc32(content)
    others = np.load(folder / INDEX)
    rows = np.concatenate([rows, others[others["shard"] > 0]])
    edit(rows)
    vouch(folder, rows)
    return headers


def vouch(folder: Path, rows: np.ndarray) -> None:
    (folder / INDEX).write_bytes(index_bytes(rows))
    manifest = read_manifest(folder)
    entry = manifest.splits["train"]
    shards = []
    for number, shard in enumerate(entry.shards):
        mine, content = rows["pid"][rows["shard"] == number], (folder / shard.name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shards.append(
            dataclasses.replace(
                shard, bytes=len(content), sha256=digest, samples=len(mine), identities=len(np.unique(mine))
            )
        )
    data = index_bytes(rows)
    pids, images = np.unique(rows["pid"], return_counts=True)
    forged = dataclasses.replace(
        entry,
        samples=len(rows),
        identities=len(pids),
        single_image_identities=int((images == 1).sum()),
        cameras=tuple(np.unique(rows["camid"]).tolist()),
        shards=tuple(shards),
        index_bytes=len(data),
        index_sha256=hashlib.sha256(data).hexdigest(),
    )
    write_manifest(folder, dataclasses.replace(manifest, splits={"train": forged}))


def with_member(
    base: Base, folder: Path, rng: np.random.Generator, member: Member, kind: str, key: str | None = None
) -> Expected:
    """One more member at a random place."""
    place = int(rng.integers(len(base.members) + 1))
    members = [*base.members[:place], member, *base.members[place:]]
    return Expected(kind, SHARD, key, forge(folder, members)[place])


def pickle_member(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder.parent}/executed",)

    name = base.members[0].key + (".pkl", ".pyd", ".pickle", ".pth", ".py")[rng.integers(5)]
    return with_member(base, folder, rng, Member(name, pickle.dumps(Evil())), "tar-name")


def escaping_name(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    names = ("../escaped.json", f"{folder.parent}/escaped.json", "a/../../escaped.jpg", "x/y.png")
    return with_member(base, folder, rng, Member(names[rng.integers(len(names))], b"{}"), "tar-name")


def dotted_name(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    name = ("img.v1_001.jpg", "p00000001.2.json", ".jpg", "p1.mask.jpg", "p00000001_00000")[rng.integers(5)]
    return with_member(base, folder, rng, Member(name, b"{}"), "tar-name")


def other_type(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    kind, link = (
        (b"1", b"../../etc/passwd"),
        (b"2", b"/etc/passwd"),
        (b"2", b"../escaped"),
        (b"3", b""),
        (b"5", b""),
        (b"6", b""),
        (b"L", b""),
        (b"x", b""),
        (b"\0", b""),
    )[rng.integers(9)]
    member = Member("p00000099_00000.jpg", b"" if link else b"11 path=../x\n", kind, link)
    return with_member(base, folder, rng, member, "tar-type")


def duplicate_member(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = int(rng.integers(len(base.members)))
    place = int(rng.integers(number + 1, len(base.members) + 1))
    member = base.members[number]
    again = member if rng.integers(2) else dataclasses.replace(member, data=rng.bytes(50))
    members = [*base.members[:place], again, *base.members[place:]]
    return Expected("tar-duplicate", SHARD, member.key, forge(folder, members)[place])


def unlisted_member(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    return with_member(
        base, folder, rng, Member("p00000077_00000.jpg", b"?"), "tar-unlisted", "p00000077_00000"
    )


def interleaved(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    members = list(base.members)
    one = int(rng.integers(len(members) - 1))
    members[one], members[one + 1] = members[one + 1], members[one]
    headers = forge(folder, members)
    return Expected("tar-order", SHARD, members[one].key, headers[one])


def replaced(folder: Path, base: Base, number: int, data: bytes) -> int:
    """The offset of the data."""
    members = list(base.members)
    members[number] = dataclasses.replace(members[number], data=data)
    return forge(folder, members)[number] + 512


def bomb(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    """A picture of a few hundred bytes that claims, and holds, up to 10 gigapixels."""
    number = 3 * int(rng.integers(len(base.members) // 3)) + int(rng.integers(2))
    side = int(rng.choice([5000, 20_000, 100_000]))
    if base.members[number].part == "image":  # a JPEG with the size in its frame header changed
        data = bytearray(base.members[number].data)
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", min(side, 65_000), min(side, 65_000))
    else:
        chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = bytearray(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk)
        data += struct.pack(">I", zlib.crc32(chunk))
        pixels = zlib.compress(bytes(5000 * 5001)) if side == 5000 else zlib.compress(bytes(10_000))
        idat = b"IDAT" + pixels
        data += struct.pack(">I", len(pixels)) + idat + struct.pack(">I", zlib.crc32(idat))
    return Expected(
        "too-many-pixels", SHARD, base.members[number].key, replaced(folder, base, number, bytes(data))
    )


def undecodable(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = 3 * int(rng.integers(len(base.members) // 3)) + int(rng.integers(2))
    member = base.members[number]
    options = (
        b"",
        pickle.dumps([1]),
        b"GIF89a" + bytes(50),
        member.data[: len(member.data) // 2],
        rng.bytes(99),
    )
    offset = replaced(folder, base, number, options[rng.integers(len(options))])
    return Expected(f"{member.part}-undecodable", SHARD, member.key, offset)


def wide_grey(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    """16-bit grey, which would be shown white."""
    number = 3 * int(rng.integers(len(base.members) // 3))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 65536, (16, 8)).astype(np.uint16)).save(buffer, "PNG")
    members = list(base.members)
    key = members[number].key
    members[number] = dataclasses.replace(members[number], name=f"{key}.png", data=buffer.getvalue())
    return Expected("image-mode", SHARD, key, forge(folder, members)[number] + 512)


def wrong_mask(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = 3 * int(rng.integers(len(base.members) // 3)) + 1
    if rng.integers(2):
        kind, data = "mask-size", picture(rng, "PNG", (9, 16))
    else:
        buffer = io.BytesIO()
        Image.new(str(rng.choice(["RGB", "P", "1", "LA", "I;16"])), (8, 16)).save(buffer, "PNG")
        kind, data = "mask-mode", buffer.getvalue()
    return Expected(kind, SHARD, base.members[number].key, replaced(folder, base, number, data))


def lying_json(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = 3 * int(rng.integers(len(base.members) // 3)) + 2
    member = base.members[number]
    about = json.loads(member.data)
    kind = "json-disagrees"
    choice = int(rng.integers(4))
    if choice < 3:
        about[("pid", "camid", "split")[choice]] = (77, "1", "query")[choice]
        data = json.dumps(about).encode()
    else:
        options = (
            b"",
            b"[]",
            b"[" * 60_000,
            b'{"pid": 1' + b"0" * 9000 + b"}",
            b"\xff",
            b"{}",
            b" " * 70_000,
        )
        kind, data = "json-invalid", options[rng.integers(len(options))]
    return Expected(kind, SHARD, member.key, replaced(folder, base, number, data))


def forged_record(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    field, value = (
        ("shard", 9),
        ("image_offset", -1),
        ("mask_offset", 2**63 - 1),
        ("json_offset", 2**62),
        ("image_length", 2**32 - 1),
        ("mask_offset", 0),
        ("key", b"../x"),
        ("key", b"a.b"),
        ("key", b"\xff\n"),
        ("pid", -5),
        ("pid", 2**62),
        ("camid", -7),
    )[rng.integers(12)]
    number = int(rng.integers(len(base.members) // 3))
    forge(folder, base.members, lambda rows: rows[field].__setitem__(number, value))
    rows = np.load(folder / INDEX, mmap_mode="r")
    return Expected("index-record", INDEX, None, rows.offset + 96 * number)


def forged_key(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    one, two = sorted(rng.choice(len(base.members) // 3, 2, replace=False).tolist())
    forge(folder, base.members, lambda rows: rows["key"].__setitem__(two, rows["key"][one]))
    return Expected("duplicate-key", INDEX, base.members[3 * one].key)


def divided_identity(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    triples = [base.members[start : start + 3] for start in range(0, len(base.members), 3)]
    triples = [triples[1], *triples[2:], triples[0]]  # two images an identity: the first one now stands last
    forge(folder, [member for triple in triples for member in triple])
    return Expected("identity-divided", INDEX, triples[-1][0].key)


def forged_index_file(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    """An index that is no index, with a manifest that vouches for it."""
    buffer = io.BytesIO()
    choice = int(rng.integers(4))
    if choice == 0:
        np.save(buffer, np.array([{}], object), allow_pickle=True)
    elif choice == 1:
        np.savez(buffer, np.zeros(3))
    elif choice == 2:
        np.save(buffer, np.zeros((2, 2)))
    else:
        shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**99,)}".ljust(118)
        buffer.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + shape)
    (folder / INDEX).write_bytes(buffer.getvalue())
    manifest = read_manifest(folder)
    entry = dataclasses.replace(
        manifest.splits["train"],
        index_bytes=len(buffer.getvalue()),
        index_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
    )
    write_manifest(folder, dataclasses.replace(manifest, splits={"train": entry}))
    return Expected("index-unreadable", INDEX)


def forged_manifest(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    """Fields of other types under a fingerprint that fits."""
    manifest = read_manifest(folder)
    entry = manifest.splits["train"]
    bad = [
        {"samples": "8"},
        {"samples": -1},
        {"index_bytes": 2.5},
        {"index_sha256": None},
        {"shards": (dataclasses.replace(entry.shards[0], bytes="big"), *entry.shards[1:])},  # type: ignore[arg-type]
    ][rng.integers(5)]
    edited = dataclasses.replace(entry, **bad)  # type: ignore[arg-type]
    write_manifest(folder, dataclasses.replace(manifest, splits={"train": edited}))
    return Expected("manifest", "manifest.json")


def forged_counts(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    manifest = read_manifest(folder)
    field = ("identities", "single_image_identities", "junk", "distractors")[rng.integers(4)]
    edited = dataclasses.replace(manifest.splits["train"], **{field: 55})  # type: ignore[arg-type]
    write_manifest(folder, dataclasses.replace(manifest, splits={"train": edited}))
    return Expected("counts", INDEX)


FORGERIES = (
    pickle_member,
    escaping_name,
    dotted_name,
    other_type,
    duplicate_member,
    unlisted_member,
    interleaved,
    bomb,
    undecodable,
    wide_grey,
    wrong_mask,
    lying_json,
    forged_record,
    forged_key,
    divided_identity,
    forged_index_file,
    forged_manifest,
    forged_counts,
)
# Forgeries that change what is stored: equal bytes are no measure then, but the decoder must refuse these.
REFUSED_BY_DECODER = {bomb, undecodable, wide_grey}
CHANGES_WHAT_IS_STORED = {wrong_mask, forged_key}
