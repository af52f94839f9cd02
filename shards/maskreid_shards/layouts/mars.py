"""MARS: tracklets of frames; the lists and the MATLAB tables in `info/` say which frames make a tracklet."""

import re
from collections import Counter
from pathlib import Path

from ..errors import ShardError
from ..samples import DISTRACTOR_PID, JUNK_PID, Layout
from .images import ImageEntry, lines_of, need_folders, sources
from .matlab import load_mat

NAME = re.compile(r"^(\d{4}|00-1)C([1-6])T(\d{4})F(\d+)\.jpg$", re.ASCII)
PUBLISHED = {
    "train tracklets": 8298,
    "train identities": 625,
    "test tracklets": 12180,
    "query tracklets": 1980,
    "test junk tracklets": 870,
    "test distractor tracklets": 3248,
}
Tracklet = list[ImageEntry]


def scan_mars(src: Path) -> Layout:
    """All frames of all tracklets: `query` has the queries' tracklets, `gallery` the other ones of test.

    0000 is the distractor (pid 0), 00-1 junk (pid -1). A frame's name keeps its tracklet (T0001).

    Raises ShardError: a missing file, a name or a row of a table that does not fit, no scipy.
    """
    need_folders(src, ["bbox_train", "bbox_test", "info"])
    train = _tracklets(src, "train")
    test = _tracklets(src, "test")
    (query_rows,) = load_mat(src / "info" / "query_IDX.mat", "query_IDX")
    query = set(query_rows.ravel().astype(int).tolist())
    if not query or min(query) < 1 or max(query) > len(test):
        raise ShardError(f"{src / 'info' / 'query_IDX.mat'}: rows outside 1..{len(test)}; fetch it again")
    parts = {
        "train": train,
        "query": [track for row, track in enumerate(test, 1) if row in query],
        "gallery": [track for row, track in enumerate(test, 1) if row not in query],
    }
    for split in ("train", "query"):
        for track in parts[split]:
            if track[0].pid <= DISTRACTOR_PID:
                raise ShardError(f"{src}: {track[0].rest}: junk and distractors belong in the gallery")
    pids = Counter(track[0].pid for track in test)
    return Layout(
        "mars",
        {
            split: sources(src, split, [frame for track in part for frame in track])
            for split, part in parts.items()
        },
        published=PUBLISHED,
        searched=(src,),
        roots=(src,),
        more_counts={
            "train tracklets": len(train),
            "test tracklets": len(test),
            "query tracklets": len(parts["query"]),
            "test junk tracklets": pids[JUNK_PID],
            "test distractor tracklets": pids[DISTRACTOR_PID],
        },
    )


def _tracklets(src: Path, part: str) -> list[Tracklet]:
    """Rows (first frame, last frame, pid, camera) of the table over the list of names; frames count from
    1."""
    names = [line for _, line in lines_of(src / "info" / f"{part}_name.txt")]
    path = src / "info" / f"tracks_{part}_info.mat"
    (table,) = load_mat(path, f"track_{part}_info")
    if table.ndim != 2 or table.shape[1] != 4 or not len(table):
        raise ShardError(f"{path}: shape {table.shape}, not rows of first, last, pid, camera; fetch it again")
    tracks = []
    for row, (first, last, pid, camid) in enumerate(table.astype(int).tolist(), 1):
        if not 1 <= first <= last <= len(names):
            raise ShardError(f"{path}: row {row}: frames {first} to {last}; the list has {len(names)} names")
        tracks.append([_frame(path, row, name, part, pid, camid) for name in names[first - 1 : last]])
    return tracks


def _frame(path: Path, row: int, name: str, part: str, pid: int, camid: int) -> ImageEntry:
    match = NAME.match(name)
    if match is None or int(match[1].removeprefix("00") if match[1] == "00-1" else match[1]) != pid:
        raise ShardError(
            f"{path}: row {row}: {name!r} is not a frame of identity {pid}, such as 0001C1T0001F001.jpg"
        )
    if int(match[2]) != camid:
        raise ShardError(f"{path}: row {row}: {name!r} is not of camera {camid}")
    return ImageEntry(f"bbox_{part}", f"{match[1]}/{name}", pid, camid)
