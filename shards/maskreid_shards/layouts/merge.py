"""Several data sets as one training set, with identities and cameras of their own."""

from collections.abc import Mapping
from dataclasses import replace

from ..errors import ShardError
from ..leftovers import find_leftovers
from ..samples import Layout, Source, numbered


def merge_train(layouts: Mapping[str, Layout]) -> Layout:
    """The train splits of `layouts`, in order: each one's pids and camids follow the previous one's.

    A sample's json names its own data set, and its source begins with that name. Test splits are left out.

    Raises ShardError: no data set, or one without a train split.
    """
    if not layouts:
        raise ShardError("nothing to merge: give NAME=LAYOUT:SRC, once for each data set")
    merged: list[Source] = []
    notes = []
    last_pid = last_camid = 0
    for name, layout in layouts.items():
        train = layout.splits.get("train", ())
        if not train:
            raise ShardError(f"{name}: has no train split to merge")
        pid_of = {pid: last_pid + rank for rank, pid in enumerate(sorted({s.pid for s in train}), 1)}
        camid_of = {
            camid: last_camid + rank for rank, camid in enumerate(sorted({s.camid for s in train}), 1)
        }
        merged += [
            replace(s, pid=pid_of[s.pid], camid=camid_of[s.camid], dataset=name, name=f"{name}/{s.name}")
            for s in train
        ]
        notes.append(
            f"{name} ({layout.name}): {len(train)} images, pids {last_pid + 1} to {last_pid + len(pid_of)}, "
            f"cameras {last_camid + 1} to {last_camid + len(camid_of)}"
        )
        notes += [f"{name}: {note}" for note in [*layout.notes, *find_leftovers(layout).lines()]]
        notes += [f"{name}: NOT AS PUBLISHED: {difference}" for difference in layout.differences()]
        last_pid, last_camid = last_pid + len(pid_of), last_camid + len(camid_of)
    keys = numbered(source.pid for source in merged)
    train = tuple(replace(source, key=key) for source, key in zip(merged, keys, strict=True))
    strays = tuple(f"{name}/{stray}" for name, layout in layouts.items() for stray in layout.strays)
    return Layout("merge", {"train": train}, strays, notes=tuple(notes))
