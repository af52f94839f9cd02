"""One shard as a unit of work, and the record that lets the next run of the same command keep it."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL

from .atomic import write_atomically
from .bad_inputs import BadInput, OnBadImage
from .image_policy import ImageChange, OnOrientation
from .manifest import INDEX_DTYPE, VERSION, ShardEntry
from .masks.landmarks import landmarks_file
from .masks.options import MaskOptions
from .masks.policy import CHANGES, MaskProblem, OnBadMask
from .opening import MANIFEST_BYTES, read_file, regular_only
from .samples import Source
from .writing import WrittenShard, write_shard

RECORDS = ".resume"  # no name of a split


@dataclass(frozen=True)
class ShardTask:
    """Everything that decides the bytes of the shard `folder/name`, number `number` of its split."""

    folder: Path
    name: str
    number: int
    sources: Sequence[Source]
    dataset: str
    on_bad_mask: OnBadMask
    mask_options: MaskOptions
    on_orientation: OnOrientation = "fail"
    on_bad_image: OnBadImage = "fail"

    def run(self, tick: Callable[[], None]) -> WrittenShard:
        """Write the shard, then the record of it. Raises ShardError as `write_shard` does."""
        digest, names = self.digests()  # first: a file that changes meanwhile must not look unchanged later
        written = write_shard(
            self.folder,
            self.name,
            self.number,
            self.sources,
            dataset=self.dataset,
            on_bad_mask=self.on_bad_mask,
            mask_options=self.mask_options,
            on_orientation=self.on_orientation,
            on_bad_image=self.on_bad_image,
            tick=tick,
        )
        record = {
            "digest": digest,
            "names": names,
            "entry": asdict(written.entry),
            "rows": base64.b64encode(written.rows.tobytes()).decode(),
            "problems": [asdict(problem) for problem in written.problems],
            "changes": [asdict(change) for change in written.changes],
            "left_out": [asdict(bad) for bad in written.left_out],
            "on_bad_mask": self.on_bad_mask,
        }
        write_atomically(self.record, json.dumps(record).encode())
        return written

    def finished(self, *, same_times: bool = True) -> WrittenShard | None:
        """What an earlier run wrote for these inputs and options, if it is there and whole. `same_times`: of
        the very files; otherwise copies of them, of the same names and sizes, will do."""
        try:
            record = json.loads(read_file(self.record, MANIFEST_BYTES))
            entry = ShardEntry(**record["entry"])
            with open(self.folder / self.name, "rb", opener=regular_only) as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
            digest, names = self.digests()
            if not whole or (record["digest"] != digest if same_times else record["names"] != names):
                return None
            rows = np.frombuffer(base64.b64decode(record["rows"]), INDEX_DTYPE)
            problems = tuple(MaskProblem(**problem) for problem in record["problems"])
            changes = tuple(ImageChange(**change) for change in record["changes"])
            left_out = tuple(BadInput(**bad) for bad in record["left_out"])
            # Policies are no part of the digest: where nothing was bad, the shard is the same under each.
            bad_masks = any(problem.kind not in CHANGES for problem in problems)
            if (bad_masks and record["on_bad_mask"] != self.on_bad_mask) or (
                left_out and self.on_bad_image == "fail"
            ):
                return None
            return WrittenShard(entry, rows, problems, changes, left_out)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # a file of a killed machine, or of another version: written again

    @property
    def record(self) -> Path:
        return self.folder / RECORDS / (self.name.replace("/", "-") + ".json")

    def digests(self) -> tuple[str, str]:
        """Two sha256 over the sources, the options and Pillow's version: one with the paths, sizes and times
        of the sources' files, one with their names and sizes, which a copy on another machine shares."""
        files, names = hashlib.sha256(), hashlib.sha256()
        for about, location in ((files, self.mask_options.location), (names, None)):
            options = (
                self.name,
                self.dataset,
                replace(self.mask_options, location=location),
                self.on_orientation,
                VERSION,
                PIL.__version__,
            )
            about.update(repr(options).encode())
        for source in self.sources:
            paths = [source.path, source.mask_path]
            if self.mask_options.landmarks and source.mask_path is not None:
                paths.append(landmarks_file(source.mask_path))
            states = [_state(path) for path in paths]
            who = (source.name, source.pid, source.camid, source.split, source.key, source.dataset)
            where = (str(source.path), str(source.mask_path), source.array, source.identity)
            files.update(repr((who, where, states)).encode())
            names.update(repr((*who, [state and state[0] for state in states])).encode())
        return files.hexdigest(), names.hexdigest()


def _state(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
