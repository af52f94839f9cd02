"""The manifest and the index: what a shard folder says about itself, written last and checked first."""

import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from .atomic import write_synced
from .bad_inputs import ImageReport
from .errors import ShardError
from .masks.policy import MaskReport
from .opening import INDEX_BYTES, MANIFEST_BYTES, read_file
from .shown import in_a_line

FORMAT = "maskreid-shards"
VERSION = 1
MANIFEST = "manifest.json"

# One record per sample, in shard order, then file order. Offsets are those of the member's data in its shard,
# in bytes.
INDEX_DTYPE = np.dtype(
    [
        ("pid", "<i8"),
        ("image_offset", "<i8"),
        ("mask_offset", "<i8"),
        ("json_offset", "<i8"),
        ("image_length", "<u4"),
        ("mask_length", "<u4"),
        ("json_length", "<u4"),
        ("image_crc32", "<u4"),
        ("mask_crc32", "<u4"),
        ("json_crc32", "<u4"),
        ("shard", "<u4"),
        ("camid", "<i4"),
        ("key", "S32"),
    ]
)
KEY_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
T = TypeVar("T")
_SPLIT_NAME = re.compile(r"^[a-z][a-z0-9_]*$", re.ASCII)


@dataclass(frozen=True)
class ShardEntry:
    """One tar file: `name` is relative to the folder (`train/000000.tar`), `bytes` its size."""

    name: str
    bytes: int
    sha256: str
    samples: int
    identities: int


@dataclass(frozen=True)
class SplitEntry:
    """One split: counts, its shards in order, and the index file. Junk and distractors are no identities."""

    samples: int
    identities: int
    single_image_identities: int
    junk: int
    distractors: int
    cameras: tuple[int, ...]
    shards: tuple[ShardEntry, ...]
    index: str
    index_bytes: int
    index_sha256: str

    @property
    def fingerprint(self) -> str:
        """sha256 over this entry: equal exactly when shards and index are equal, byte for byte."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. `layout` is the source's, `seed` dealt the identities to shards.

    `images` is there where images were left out, `numbering` where pids or cameras are not those of the
    source: {"pid" or "camid": {as it stands in the source: as it is here}}.
    """

    dataset: str
    layout: str
    seed: int
    shard_bytes: int
    splits: dict[str, SplitEntry]
    masks: MaskReport
    images: ImageReport | None = None
    numbering: dict[str, dict[str, int]] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        # What says nothing is left out: shards written before it was recorded keep their fingerprint.
        if not self.masks.form:
            del content["masks"]["form"]
        for name in ("images", "numbering"):
            if not content[name]:
                del content[name]
        if not self.masks.maker:
            del content["masks"]["maker"]
        return content

    @property
    def fingerprint(self) -> str:
        """sha256 over the manifest's content, hence over every shard and index."""
        return _digest(self.content())


def index_bytes(rows: NDArray[np.void]) -> bytes:
    """The index as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` and sync it. It goes last: a folder without one is not a shard folder."""
    text = (
        json.dumps({**manifest.content(), "fingerprint": manifest.fingerprint}, indent=1, sort_keys=True)
        + "\n"
    )
    write_synced(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` (not the files it names).

    Raises ShardError: no manifest, not JSON, another format or version, missing or odd fields, a fingerprint
    that does not fit the content.
    """
    path = folder / MANIFEST
    try:
        data = read_file(path, MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(
            f"{folder}: no {MANIFEST}, so not a shard folder; make one with `maskreid convert`"
        ) from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); restore it") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The manifest in the bytes of `path`, a path or URL for messages. Raises ShardError as
    `read_manifest`."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON ({error}); convert the data set again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ShardError(f"{path}: not the manifest of a {FORMAT} folder")
    if content.get("version") != VERSION:
        found = in_a_line(repr(content.get("version")), 80)
        raise ShardError(f"{path}: format version {found}, this program reads {VERSION}; convert again")
    try:
        manifest = _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(
            f"{path}: a field is missing or odd ({in_a_line(repr(error), 80)}); convert the data set again"
        ) from None
    if manifest.fingerprint != content.get("fingerprint"):
        raise ShardError(
            f"{path}: the content does not fit its fingerprint: it was edited; convert the data set again"
        )
    return manifest


def _parse(content: dict[str, Any]) -> Manifest:
    splits = {}
    for name, entry in content["splits"].items():
        if not _SPLIT_NAME.match(name):
            raise ValueError(f"split name {name!r}")
        shards = tuple(_typed(ShardEntry(**shard)) for shard in entry["shards"])
        # Names are derived, not believed: a manifest from elsewhere must not reach outside its folder.
        for number, shard in enumerate(shards):
            if shard.name != shard_name(name, number):
                raise ValueError(f"shard name {shard.name!r}")
        if entry["index"] != index_name(name):
            raise ValueError(f"index name {entry['index']!r}")
        if entry["index_bytes"] > INDEX_BYTES:
            raise ValueError(f"an index of {entry['index_bytes']} bytes, and at most {INDEX_BYTES} are read")
        cameras = tuple(entry["cameras"])
        splits[name] = _typed(SplitEntry(**{**entry, "shards": shards, "cameras": cameras}))
    masks = MaskReport(**{**content["masks"], "examples": tuple(content["masks"]["examples"])})
    images = content.get("images")
    if images is not None:
        images = _typed(ImageReport(**{**images, "examples": tuple(images["examples"])}))
    numbering = {what: dict(numbers) for what, numbers in content.get("numbering", {}).items()}
    fields = {name: content[name] for name in ("dataset", "layout", "seed", "shard_bytes")}
    return _typed(Manifest(**fields, splits=splits, masks=_typed(masks), images=images, numbering=numbering))


def _typed(entry: T) -> T:
    """The entry, when its numbers are integers from 0 and its texts are text; raises ValueError otherwise."""
    for name, kind in get_type_hints(type(entry)).items():
        value = getattr(entry, name)
        wrong = kind is int and (type(value) is not int or not 0 <= value < 2**63)
        if wrong or (kind is str and not isinstance(value, str)):
            raise ValueError(f"{name}: {value!r}")
    return entry


def odd_keys(keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Numbers of the keys that are not letters, digits, `_` and `-`: such a key may end up as a file's
    name."""
    letters = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1)
    allowed = np.zeros(256, bool)
    allowed[list(KEY_LETTERS + b"\0")] = True
    wrong = ~allowed[letters].all(1) | (letters[:, 0] == 0)
    wrong |= ((letters[:, :-1] == 0) & (letters[:, 1:] != 0)).any(1)
    return np.flatnonzero(wrong)


def shard_name(split: str, number: int) -> str:
    return f"{split}/{number:06d}.tar"


def index_name(split: str) -> str:
    return f"index/{split}.npy"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
