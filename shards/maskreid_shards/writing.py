"""One shard: a deterministic ustar file of image, mask and json members, and the index records for it."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .atomic import create
from .bad_inputs import CAP, BadInput, BadInputs, ImageKind, OnBadImage, bad_image
from .decode import TooManyPixels, checked_picture, decode
from .errors import BadImageError, ShardError
from .file_kinds import HEAD_BYTES, file_kind, misnamed
from .image_policy import (
    ImageChange,
    OnOrientation,
    OrientationError,
    changed_picture,
    needed_changes,
)
from .layouts.cuhk03 import read_array
from .layouts.lmdb import read_lmdb
from .layouts.matlab import open_hdf5
from .manifest import INDEX_DTYPE, ShardEntry
from .masks.finding import what_lies_there
from .masks.landmarks import Landmarks, read_landmarks
from .masks.options import MaskOptions
from .masks.policy import ALL_KINDS, DEFAULT_MASKS, MaskProblem, OnBadMask, full_mask, png_bytes, read_mask
from .opening import PICTURE_BYTES, read_file
from .samples import Source

BLOCK = tarfile.BLOCKSIZE
# Images that are read before their masks: turn about, the JPEG and PNG decoders evict each other's code from
# the caches.
TOGETHER = 32
FORMAT_OF_SUFFIX = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
ALL_FORMATS = {**FORMAT_OF_SUFFIX, ".bmp": "BMP"}  # that an image may have on disk


# Type "regular file", no link, magic and version; no user, group, device or prefix.
_HEADER_END = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")
_HEADER_END_SUM = sum(_HEADER_END) + 8 * ord(" ")
# Mode, user, group, size, time.
_HEADER_MIDDLE = b"0000644\0" + 2 * b"0000000\0" + b"%011o\0" + b"00000000000\0"
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class ReadImage:
    """An image as it goes into a shard: `size` is (width, height)."""

    data: bytes
    size: tuple[int, int]
    suffix: str
    changes: tuple[ImageChange, ...] = ()


ReadMask = tuple[bytes | None, tuple[MaskProblem, ...]]


@dataclass(frozen=True)
class WrittenShard:
    """What a finished shard adds to the manifest, to the index (INDEX_DTYPE) and to the reports on masks and
    images."""

    entry: ShardEntry
    rows: NDArray[np.void]
    problems: tuple[MaskProblem, ...]
    changes: tuple[ImageChange, ...] = ()
    left_out: tuple[BadInput, ...] = ()


class TarWriter:
    """Append members; keeps the offset and the sha256 of what was written. `flush` writes them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0
        self.digest = hashlib.sha256()

        self.parts: list[bytes] = []

    def append(self, name: str, data: bytes) -> int:
        """Add one member and return the offset of its data. Owner, time and mode are fixed."""
        self.parts += (_header(name, len(data)), data, bytes(-len(data) % BLOCK))
        start = self.offset + BLOCK
        self.offset += member_bytes(len(data))
        return start

    def flush(self) -> None:
        """Once a sample: a call for each part of it costs more than joining them."""
        data = b"".join(self.parts)
        self.parts.clear()
        self.file.write(data)
        self.digest.update(data)

    def finish(self) -> None:
        self.parts.append(bytes(2 * BLOCK))
        self.offset += 2 * BLOCK
        self.flush()
        self.file.flush()
        os.fsync(self.file.fileno())


def _header(name: str, size: int) -> bytes:
    """A ustar header. Not `tarfile`'s: its bytes have changed between Python versions, and it is slow."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= 8**11:
        raise ShardError(f"{name}: a member's name takes at most 100 bytes, its data at most {8**11 - 1}")
    start = encoded.ljust(100, b"\0") + _HEADER_MIDDLE % size
    # The checksum is the sum of the bytes with spaces in its own place.
    return start + b"%06o\0 " % (sum(start) + _HEADER_END_SUM) + _HEADER_END


def write_shard(
    folder: Path,
    name: str,
    number: int,
    sources: Sequence[Source],
    *,
    dataset: str,
    on_bad_mask: OnBadMask,
    mask_options: MaskOptions = DEFAULT_MASKS,
    on_orientation: OnOrientation = "fail",
    on_bad_image: OnBadImage = "fail",
    tick: Callable[[], None] = lambda: None,
) -> WrittenShard:
    """Write `folder/name`, the split's shard `number`, from `sources`; `tick` is called after each.

    Every image and mask is decoded completely first. Shards are independent of each other: any order, any
    process.

    Raises BadInputs: all bad images and masks of this shard (at most CAP) under the policy "fail"; the shard
    is removed then.
    """
    rows = np.zeros(len(sources), INDEX_DTYPE)
    kept = 0
    problems: list[MaskProblem] = []
    changes: list[ImageChange] = []
    left_out: list[BadInput] = []
    refused: list[BadInput] = []
    with create(folder / name) as file:
        tar = TarWriter(file)
        for source, image, (mask, found) in _read_pairs(sources, mask_options, on_orientation):
            tick()
            if isinstance(image, BadInput):
                (refused if on_bad_image == "fail" else left_out).append(image)
            elif mask is None and on_bad_mask == "fail":
                refused.append(bad_mask(source, found[0]))
            elif not refused:
                if mask is None and on_bad_mask == "full":
                    mask = full_mask(image.size)
                problems += found
                changes += image.changes
                if mask is not None:
                    points = read_landmarks(source) if mask_options.landmarks else None
                    about = sample_json(source, dataset, points)
                    rows[kept] = append_sample(tar, source, image, mask, about, number)
                    kept += 1
            if len(refused) >= CAP:
                break
        if not refused:
            tar.finish()
    if refused:
        (folder / name).unlink()
        raise BadInputs(refused)
    rows = rows[:kept]
    identities = np.unique(rows["pid"])
    entry = ShardEntry(name, tar.offset, tar.digest.hexdigest(), kept, int((identities > 0).sum()))
    return WrittenShard(entry, rows, tuple(problems), tuple(changes), tuple(left_out))


def _read_pairs(
    sources: Sequence[Source], mask_options: MaskOptions, on_orientation: OnOrientation
) -> Iterator[tuple[Source, ReadImage | BadInput, ReadMask]]:
    """Each source with what `read_image` and `read_mask` say of it; no mask is read for a bad image."""
    for first in range(0, len(sources), TOGETHER):
        part = list(sources[first : first + TOGETHER])
        images = [read_or_refuse(source, on_orientation) for source in part]
        masks: list[ReadMask] = [
            (None, ())
            if isinstance(image, BadInput)
            else read_mask(
                source.mask_path, image.size, where=source.name, options=mask_options, image=image.data
            )
            for source, image in zip(part, images, strict=True)
        ]
        yield from zip(part, images, masks, strict=True)


def read_or_refuse(source: Source, on_orientation: OnOrientation) -> ReadImage | BadInput:
    """Raises OrientationError; what else is wrong is returned."""
    try:
        return read_image(source, on_orientation)
    except OrientationError:
        raise
    except BadImageError as error:
        kind: ImageKind = error.kind  # type: ignore[assignment]  # one of them, by its class
        return bad_image(kind, source.name, error, str(source.path))
    except TooManyPixels as error:
        return bad_image("pixels", source.name, error, str(source.path))
    except ShardError as error:
        return bad_image("unreadable", source.name, error, str(source.path))


def append_sample(
    tar: TarWriter, source: Source, image: ReadImage, mask: bytes, about: bytes, shard: int
) -> tuple[int | bytes, ...]:
    """Write the three members and return their index record."""
    image_offset = tar.append(source.key + image.suffix, image.data)
    mask_offset = tar.append(source.key + ".mask.png", mask)
    json_offset = tar.append(source.key + ".json", about)
    tar.flush()
    offsets = (image_offset, mask_offset, json_offset)
    members = (image.data, mask, about)
    key = source.key.encode("ascii")
    return (source.pid, *offsets, *map(len, members), *map(zlib.crc32, members), shard, source.camid, key)


def sample_json(source: Source, dataset: str, landmarks: Landmarks | None = None) -> bytes:
    """The bytes of a sample's json member."""
    about: dict[str, object] = {
        "pid": source.pid,
        "camid": source.camid,
        "dataset": source.dataset or dataset,
        "split": source.split,
        "source": source.name,
    }
    if landmarks is not None:
        about["landmarks"] = landmarks
    return _JSON.encode(about).encode()


def member_bytes(length: int) -> int:
    """What a member with `length` bytes of data takes in the tar file."""
    return BLOCK + length + -length % BLOCK


def read_image(source: Source, on_orientation: OnOrientation = "fail") -> ReadImage:
    """The original bytes of a sound image, its (width, height), its member's suffix, and what was changed.

    What a shard cannot hold becomes PNG: a BMP, an array in a MATLAB file, 16-bit grey (as 8 bits), and under
    "transpose" an image with an EXIF orientation (upright).

    Raises ShardError: no such file, an unknown suffix or mode, another format than the suffix says, broken
    data; OrientationError under "fail".
    """
    where = str(source.path)
    if source.array is not None and not source.path.is_dir():
        picture = Image.fromarray(_read_array(source))
        return ReadImage(png_bytes(picture), picture.size, ".png")
    if source.array is not None:
        data = read_lmdb(source.path, source.array)
        kind = file_kind(data[:HEAD_BYTES])
        if kind not in SUFFIX_OF_FORMAT:
            raise BadImageError(
                f"{where}: {source.array}: no picture that a shard holds; replace it", "unreadable"
            )
        suffix, expected = SUFFIX_OF_FORMAT[kind], kind
    else:
        suffix, expected = image_format(source)
        try:
            data = read_file(source.path, PICTURE_BYTES)
        except OSError as error:
            raise no_file(source, error) from error
        if wrong := misnamed(data[:HEAD_BYTES], len(data), suffix, expected):
            raise BadImageError(f"{where}: {wrong}", "unreadable")
    if expected == "BMP":
        picture = decode(data, formats=("BMP",), where=where)
        return ReadImage(png_bytes(picture.convert("RGB")), picture.size, ".png")
    found = checked_picture(data, formats=(expected,), where=where)
    changes = needed_changes(found, source, on_orientation)
    if all(change.kind == "lying" for change in changes):
        return ReadImage(data, found.size, suffix, changes)
    picture, changes = changed_picture(decode(data, formats=(expected,), where=where), changes)
    return ReadImage(png_bytes(picture), picture.size, ".png", changes)


def image_format(source: Source) -> tuple[str, str]:
    """The suffix of an image's file, in small letters, and the format that it says. Raises BadImageError."""
    suffix = source.path.suffix.lower()
    if suffix not in ALL_FORMATS:
        raise BadImageError(
            f"{source.path}: {f'a {suffix} file' if suffix else 'no suffix'}, and images are "
            f"{', '.join(ALL_FORMATS)}; convert it first",
            "suffix",
        )
    return suffix, ALL_FORMATS[suffix]


def no_file(source: Source, error: OSError) -> BadImageError:
    """What is said of an image that is not read."""
    return BadImageError(f"{source.path}: cannot be read ({error.strerror}); check the file", "missing")


def _read_array(source: Source) -> NDArray[np.uint8]:
    assert source.array is not None
    with open_hdf5(source.path) as file:
        pixels: NDArray[np.uint8] = read_array(file, source.array)
    return pixels


def bad_mask(source: Source, problem: MaskProblem) -> BadInput:
    """The bad mask of an image, for people."""
    where = source.mask_path if source.mask_path is not None else source.path
    detail, remedy = f" ({problem.detail})", "repair it"
    if problem.kind == "missing":
        remedy = "have it made (--segment pose)"
        found = what_lies_there(source.mask_path) if source.mask_path is not None else ""
        detail = f" ({found})" if found else ""
    message = (
        f"{where}: mask of {source.name}: {ALL_KINDS[problem.kind]}{detail}; {remedy}, or choose what "
        "happens to "
        'bad masks (--on-bad-mask): "full" (whole image) or "skip" (leave the image out)'
    )
    return BadInput("mask", problem.kind, source.name, f"{ALL_KINDS[problem.kind]}{detail}", message)
