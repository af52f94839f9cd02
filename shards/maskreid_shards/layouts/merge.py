"""Several data sets as one training set, with identities and cameras of their own."""

import contextlib
import filecmp
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ShardError
from ..leftovers import find_leftovers
from ..samples import Layout, Sources, numbered

LOOKS = 20  # images that are compared byte for byte


def merge_train(layouts: Mapping[str, Layout]) -> Layout:
    """The train splits of `layouts`, in order: each one's pids and camids follow the previous one's.

    A sample's json names its own data set, and its source begins with that name. Test splits are left out.

    Raises ShardError: no data set, one without a train split, or two that hold the same images.
    """
    if not layouts:
        raise ShardError("nothing to merge: give NAME=LAYOUT:SRC, once for each data set")
    warnings = _copies(layouts)
    merged: list[Sources] = []
    notes = []
    last_pid = last_camid = 0
    for name, layout in layouts.items():
        train = Sources.of(layout.splits.get("train", ()))
        if not train:
            raise ShardError(f"{name}: has no train split to merge")
        pid_of = {pid: last_pid + rank for rank, pid in enumerate(np.unique(train.pids).tolist(), 1)}
        camid_of = {
            camid: last_camid + rank for rank, camid in enumerate(sorted({s.camid for s in train}), 1)
        }
        merged.append(
            Sources.of(
                replace(s, pid=pid_of[s.pid], camid=camid_of[s.camid], dataset=name, name=f"{name}/{s.name}")
                for s in train
            )
        )
        notes.append(
            f"{name} ({layout.name}): {len(train)} images, pids {last_pid + 1} to {last_pid + len(pid_of)}, "
            f"cameras {last_camid + 1} to {last_camid + len(camid_of)}"
        )
        notes += [f"{name}: {note}" for note in [*layout.notes, *find_leftovers(layout).lines()]]
        notes += [f"{name}: NOT AS PUBLISHED: {difference}" for difference in layout.differences()]
        last_pid, last_camid = last_pid + len(pid_of), last_camid + len(camid_of)
    keys = numbered(pid for part in merged for pid in part.pids.tolist())
    train = Sources.of(
        replace(source, key=key) for source, key in zip(itertools.chain(*merged), keys, strict=True)
    )
    strays = tuple(f"{name}/{stray}" for name, layout in layouts.items() for stray in layout.strays)
    roots = tuple(root for layout in layouts.values() for root in layout.roots)
    return Layout("merge", {"train": train}, strays, notes=tuple(notes), roots=roots, warnings=warnings)


def _copies(layouts: Mapping[str, Layout]) -> tuple[str, ...]:
    """Warnings of data sets most of whose images are in another one too, by name and size, of which some are
    compared byte for byte.

    Raises ShardError where both hold the same images: a copy of a data set under another path would be
    other identities.
    """
    images = {name: _images(layout) for name, layout in layouts.items()}
    warnings = []
    for (one, first), (other, second) in itertools.combinations(images.items(), 2):
        shared = sorted(first.keys() & second.keys())
        if 2 * len(shared) <= min(len(first), len(second)):
            continue
        looked_at = shared[:: max(1, len(shared) // LOOKS)]
        if not all(filecmp.cmp(first[image], second[image], shallow=False) for image in looked_at):
            continue
        if len(shared) == len(first) == len(second):
            raise ShardError(f"{other}: holds the same images as {one}; give each data set once")
        warnings.append(
            f"{len(shared)} OF THE {len(second)} IMAGES OF {other} ARE IN {one} TOO, AS OTHER IDENTITIES"
        )
    return tuple(warnings)


def _images(layout: Layout) -> dict[tuple[str, int], Path]:
    """The train images that are files, by their names with the folder's, and sizes."""
    found = {}
    for source in layout.splits.get("train", ()):
        if source.array is None:
            with contextlib.suppress(OSError):  # missing files are the conversion's to name
                name = "/".join(source.path.parts[-2:])
                found[name, source.path.stat().st_size] = source.path
    return found
