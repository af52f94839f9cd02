"""Identities and cameras as the index can hold them."""

from dataclasses import replace

import numpy as np

from .errors import ShardError
from .manifest import INDEX_DTYPE
from .samples import Layout, Sources, too_long

MAX_CAMID = int(np.iinfo(INDEX_DTYPE["camid"]).max)
MAX_PID = 10**18 - 1  # 18 digits: a key has room for no more


def fit_index(layout: Layout) -> Layout:
    """The layout with cameras that the index can hold: where one is too large, as a serial number may be, all
    are numbered from 1 in their order, and the notes say how.

    Raises ShardError: a pid of more than 18 digits.
    """
    splits = [Sources.of(part) for part in layout.splits.values()]
    for part in splits:
        for at in np.flatnonzero(part.pids > MAX_PID)[:1]:
            raise ShardError(too_long(part[int(at)]))
    camids = sorted({camid for part in splits for camid in part.camids})
    if not camids or camids[-1] <= MAX_CAMID:
        return layout
    number = {camid: position for position, camid in enumerate(camids, 1)}
    renumbered = {
        split: Sources.of(replace(source, camid=number[source.camid]) for source in sources)
        for split, sources in layout.splits.items()
    }
    said = ", ".join(f"{camid} is {position}" for camid, position in number.items())
    note = f"cameras are numbered anew, as {camids[-1]} does not fit the index: {said}"
    numbering = {**layout.numbering, "camid": {str(camid): position for camid, position in number.items()}}
    return replace(layout, splits=renumbered, notes=(*layout.notes, note), numbering=numbering)
