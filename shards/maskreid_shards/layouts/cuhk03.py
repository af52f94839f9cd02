"""CUHK03's release: one HDF5 file `cuhk-03.mat` of pixel arrays, labelled and detected, and 20 test sets."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..errors import ShardError
from ..samples import Layout
from .images import ImageEntry, sources
from .matlab import open_hdf5

Boxes = Literal["labeled", "detected", "merged"]
RELEASE = "cuhk-03.mat"
COLUMNS = 10  # 1-5 show view 1, 6-10 view 2
TEST_SETS = 20
# Identities of each of the 5 pairs of cameras, and of a test set.
PAIR_IDENTITIES = (843, 440, 77, 58, 49)
TEST_IDENTITIES = 100
IMAGE_NAME = re.compile(r"^(\d)_(\d{3})_([12])_(\d{2})\.png$", re.ASCII)


@dataclass(frozen=True)
class ReleaseImage:
    """One pixel array: pair of cameras, identity in the pair, view, column: all from 1."""

    boxes: str
    pair: int
    identity: int
    view: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.pair}_{self.identity:03d}_{self.view}_{self.column:02d}.png"

    @property
    def array(self) -> str:
        """How `read_array` finds it."""
        return f"{self.boxes}/{self.pair}/{self.identity}/{self.column}"


def scan_cuhk03(src: Path, *, boxes: Boxes = "labeled", test_set: int = 1) -> Layout:
    """The classic protocol: 100 test identities (`test_set` 1 to 20), the others train; views are cameras.

    `src` is `cuhk-03.mat` or a folder that holds it. `query` has the test identities' images of view 1,
    `gallery` those of view 2; the protocol draws one gallery image per identity at evaluation. "merged" takes
    labelled and detected boxes. Images are stored as PNG, as there are no files to keep. An identity's pid
    counts through the pairs of cameras, so it is the same in every test set.

    Raises ShardError: no h5py, not the release file, a test set that is not there.
    """
    if boxes not in get_args(Boxes):
        raise ShardError(f"boxes {boxes!r}: use one of {', '.join(get_args(Boxes))}")
    path = release_file(src)
    with open_hdf5(path) as file:
        test_sets = file["testsets"][0]
        if not 1 <= test_set <= len(test_sets):
            raise ShardError(f"{path}: test set {test_set}: there are 1 to {len(test_sets)}")
        rows = file[test_sets[test_set - 1]][:].T.astype(int).tolist()
        test = {(pair, identity) for pair, identity in rows}
        pair_sizes = [file[cells].shape[1] for cells in file["labeled"][0]]
        images = [
            image
            for kind in (("labeled", "detected") if boxes == "merged" else (boxes,))
            for image in _images(file, kind)
        ]
    offsets = np.cumsum([0, *pair_sizes]).tolist()
    found: dict[str, list[ImageEntry]] = {"train": [], "query": [], "gallery": []}
    for image in images:
        is_test = (image.pair, image.identity) in test
        split = ("query" if image.view == 1 else "gallery") if is_test else "train"
        found[split].append(as_found(path.name, image, offsets[image.pair - 1] + image.identity))
    absent = [split for split, part in found.items() if not part]
    if absent:
        raise ShardError(f"{path}: no images for {', '.join(absent)}; fetch it again")
    identities = sum(PAIR_IDENTITIES)
    return Layout(
        "cuhk03",
        {split: sources(path.parent, split, part) for split, part in found.items()},
        published={
            "train identities": identities - TEST_IDENTITIES,
            "query identities": TEST_IDENTITIES,
            "gallery identities": TEST_IDENTITIES,
            "test sets": TEST_SETS,
            **{f"pair {pair} identities": size for pair, size in enumerate(PAIR_IDENTITIES, 1)},
        },
        more_counts={
            "test sets": len(test_sets),
            **{f"pair {pair} identities": size for pair, size in enumerate(pair_sizes, 1)},
        },
        roots=(src,) if src.is_dir() else (src, src.parent),
        notes=(
            f"classic protocol, test set {test_set} of {len(test_sets)}, {boxes} boxes; arrays stored as PNG",
        ),
    )


def release_file(src: Path) -> Path:
    """`cuhk-03.mat`: `src` itself, or inside it."""
    places = [src, src / RELEASE, src / "cuhk03_release" / RELEASE]
    for path in places:
        if path.is_file():
            return path
    raise ShardError(f"{src}: no {RELEASE} in it; give that file or its folder")


def parse_name(name: str, boxes: str) -> ReleaseImage | None:
    """The array that an extracted image's name stands for."""
    match = IMAGE_NAME.match(name)
    return ReleaseImage(boxes, *map(int, match.groups())) if match else None


def as_found(file: str, image: ReleaseImage, pid: int) -> ImageEntry:
    return ImageEntry(file, f"{image.boxes}/{image.name}", pid, image.view, image.array)


def read_array(file: Any, array: str) -> Any:
    """The pixels (height, width, 3), uint8, of a `ReleaseImage.array`. MATLAB's order of the axes is
    reversed."""
    boxes, pair, identity, column = array.split("/")
    cells = file[file[boxes][0][int(pair) - 1]]
    pixels = file[cells[int(column) - 1][int(identity) - 1]][:].T
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"{array}: {pixels.dtype} of {pixels.shape}, not an RGB image")
    return np.ascontiguousarray(pixels)


def _images(file: Any, boxes: str) -> Iterator[ReleaseImage]:
    """In the order pair, identity, column. Cells may be empty: those are no images."""
    for pair, reference in enumerate(file[boxes][0], 1):
        cells = file[reference][:]
        if cells.shape[0] != COLUMNS:
            raise ValueError(f"{boxes}, pair {pair}: {cells.shape[0]} columns instead of {COLUMNS}")
        for identity in range(cells.shape[1]):
            for column in range(COLUMNS):
                # MATLAB stores an empty cell as its size: an array of one axis.
                if file[cells[column, identity]].ndim == 3:
                    view = 1 if column < COLUMNS // 2 else 2
                    yield ReleaseImage(boxes, pair, identity + 1, view, column + 1)
