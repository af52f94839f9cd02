"""Damage to a tiny shard folder, for tests: one function a fault, which changes the folder and says what
`verify` must find."""

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = "train/000000.tar"
INDEX = "index/train.npy"
PARTS = {"jpg": "image", "png": "image", "mask.png": "mask", "json": "json"}
Samples = dict[str, tuple[bytes, bytes]]


@dataclass(frozen=True)
class Expected:
    """A problem that must be among those found; None matches anything."""

    kind: str
    shard: str | None = SHARD
    key: str | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Member:
    name: str
    data: bytes
    type: bytes = b"0"
    link: bytes = b""

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]

    @property
    def part(self) -> str:
        return PARTS[self.name.partition(".")[2]]


@dataclass(frozen=True)
class Base:
    """The undamaged folder, the members of its first shard with the offsets of their headers, its samples."""

    folder: Path
    members: list[Member]
    headers: list[int]
    samples: Samples


def picture(generator: np.random.Generator, kind: str, size: tuple[int, int] = (8, 16)) -> bytes:
    shape = (size[1], size[0], 3) if kind == "JPEG" else (size[1], size[0])
    pixels = generator.integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


# Damage: one function a fault. Each changes the folder and says what must be found.


def flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def header_bit(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = int(rng.integers(len(base.members)))
    start = base.headers[number]
    flip(folder / SHARD, start + int(rng.integers(512)), int(rng.integers(8)))
    return Expected("tar-header", SHARD, base.members[number].key, start)


def zeroed_header(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = int(rng.integers(len(base.members)))
    data = bytearray((folder / SHARD).read_bytes())
    data[base.headers[number] : base.headers[number] + 512] = bytes(512)
    (folder / SHARD).write_bytes(data)
    return Expected("tar-header", SHARD, base.members[number].key, base.headers[number])


def payload_bit(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = int(rng.integers(len(base.members)))
    member, start = base.members[number], base.headers[number] + 512
    flip(folder / SHARD, start + int(rng.integers(len(member.data))), int(rng.integers(8)))
    return Expected(f"{member.part}-crc32", SHARD, member.key, start)


def padding_bit(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    padded = [number for number, member in enumerate(base.members) if len(member.data) % 512]
    number = int(rng.choice(padded))
    end = base.headers[number] + 512 + len(base.members[number].data)
    flip(folder / SHARD, end + int(rng.integers(-len(base.members[number].data) % 512)), int(rng.integers(8)))
    return Expected("tar-padding", SHARD, None, end)


def end_bit(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    size = (folder / SHARD).stat().st_size
    flip(folder / SHARD, size - 1 - int(rng.integers(512)), int(rng.integers(8)))
    return Expected("tar-end", SHARD, None, size - 1024)


def index_bit(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    flip(folder / INDEX, int(rng.integers((folder / INDEX).stat().st_size)), int(rng.integers(8)))
    return Expected("index-sha256", INDEX)


def manifest_bit(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    path = folder / "manifest.json"
    flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))
    return Expected("manifest", "manifest.json")


def broken_manifest(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    texts = (b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"format": "maskreid-shards", "version": 1}', b"null")
    (folder / "manifest.json").write_bytes(texts[rng.integers(len(texts))])
    return Expected("manifest", "manifest.json")


def cut_at_a_member(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = int(rng.integers(len(base.members)))
    os.truncate(folder / SHARD, base.headers[number])
    return Expected("tar-missing", SHARD, base.members[number].key, base.headers[number])


def cut_inside_a_member(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    number = int(rng.integers(len(base.members)))
    member, start = base.members[number], base.headers[number]
    cut = int(rng.integers(1, 512 + len(member.data)))
    os.truncate(folder / SHARD, start + cut)
    return Expected("tar-missing" if cut < 512 else "tar-truncated", SHARD, member.key, start)


def cut_end(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    size = (folder / SHARD).stat().st_size
    os.truncate(folder / SHARD, size - int(rng.integers(1, 1025)))
    return Expected("tar-end", SHARD, None, size - 1024)


def cut_index(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    os.truncate(folder / INDEX, int(rng.integers((folder / INDEX).stat().st_size)))
    return Expected("index-size", INDEX)


def emptied(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    name, kind = [(SHARD, "shard-size"), (INDEX, "index-size"), ("manifest.json", "manifest")][
        rng.integers(3)
    ]
    (folder / name).write_bytes(b"")
    return Expected(kind, name)


def gone(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    name, kind = [(SHARD, "shard-missing"), (INDEX, "index-missing")][rng.integers(2)]
    (folder / name).unlink()
    return Expected(kind, name)


def appended(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data + rng.bytes(int(rng.integers(1, 2000))))
    return Expected("tar-end", SHARD, None, len(data) - 1024)


def foreign_file(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    names = ("train/000009.tar", "train/.000000.tar.swp", "index/evil.pkl", "setup.py", "deep/er/x", "a\nb")
    name = names[rng.integers(len(names))]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(rng.bytes(100))
    return Expected("foreign-file", name)


def linked_file(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    name = (SHARD, INDEX, "manifest.json", "train", "notes")[rng.integers(5)]
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(base.folder / name if rng.integers(2) else "/dev/zero")
    return Expected("symlink", name)


def fifo(base: Base, folder: Path, rng: np.random.Generator) -> Expected:
    name = (SHARD, INDEX, "pipe")[rng.integers(3)]
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    return Expected("symlink", name)


DAMAGES: dict[Callable[[Base, Path, np.random.Generator], Expected], int] = {
    header_bit: 6,
    payload_bit: 6,
    index_bit: 4,
    manifest_bit: 4,
    cut_at_a_member: 3,
    cut_inside_a_member: 4,
}
OTHER_DAMAGES = (
    zeroed_header,
    padding_bit,
    end_bit,
    broken_manifest,
    cut_end,
    cut_index,
    emptied,
    gone,
    appended,
    foreign_file,
    linked_file,
    fifo,
)
