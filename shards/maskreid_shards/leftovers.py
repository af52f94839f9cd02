"""What lies below a data set's folder and is in no shard: counted by name, so that nothing vanishes."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .layouts.images import IMAGE_SUFFIXES, MASK_SUFFIX
from .samples import Layout

# Images to a camera or a phone, none to `list_images`: there they are other files, and counted as such.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jfif", ".npy")
EXAMPLES = 3


@dataclass(frozen=True)
class Leftovers:
    """The images below the searched folders that are neither converted nor a converted image's mask, by the
    first folder of their paths: those in a folder of masks (`_seg`), which belong to no image, and all
    others."""

    images: dict[str, list[str]]
    masks: dict[str, list[str]]
    chosen: bool = False  # by a list, which may mean to leave images out

    def lines(self) -> list[str]:
        """The report for people: a line for each folder, with a name from each of a few places."""
        return [
            *_lines(self.images, "images not converted"),
            *_lines(self.masks, "masks that belong to no image"),
        ]

    def warnings(self, converted: int) -> list[str]:
        """What must not be overlooked: more images were left than converted."""
        left = 0 if self.chosen else sum(map(len, self.images.values()))
        return [f"MOST IMAGES WERE NOT CONVERTED, {left} of {left + converted}"] if left > converted else []


def _lines(found: dict[str, list[str]], what: str) -> list[str]:
    lines = []
    for top, names in sorted(found.items()):
        folders = {name.rpartition("/")[0]: name for name in reversed(names)}  # the first of each
        shown = ", ".join(list(reversed(folders.values()))[:EXAMPLES])
        lines.append(f"{top}: {len(names)} {what}: {shown}{', ...' if len(names) > EXAMPLES else ''}")
    return lines


def find_leftovers(layout: Layout) -> Leftovers:
    """Search `layout.searched`. Nothing is opened; folders that are links are not entered."""
    used = _files(layout) if layout.searched else {}
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    strays = set(layout.strays)
    for root in layout.searched:
        for folder, names in _pictures(root):
            place = os.path.relpath(folder, root)
            found = masks if any(part.endswith(MASK_SUFFIX) for part in Path(place).parts) else images
            seen = set(used.get(os.path.realpath(folder), ()))
            left = [os.path.normpath(f"{place}/{name}") for name in names if hash(name) not in seen]
            left = [name for name in left if name not in strays]
            if left:
                top = root.resolve().name if place == "." else Path(place).parts[0]
                found.setdefault(top, []).extend(left)
    return Leftovers(images, masks, chosen=layout.name == "csv")


def _pictures(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below `root` with its pictures; `._x.jpg` is what macOS leaves beside a copied file."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        pictures = [name for name in names if name.lower().endswith((*IMAGE_SUFFIXES, *OTHER_SUFFIXES))]
        yield folder, sorted(name for name in pictures if not name.startswith("."))


def _files(layout: Layout) -> dict[str, "array[int]"]:
    """Hashes of the names of all images and masks by the folder that they really lie in: names would take
    more memory than all that is known of the images."""
    places: dict[str, array[int]] = {}
    for source in layout.sources():
        for path in (source.path, source.mask_path):
            if path is not None:
                folder, name = os.path.split(path)
                places.setdefault(folder, array("q")).append(hash(name))
    used: dict[str, array[int]] = {}
    for folder, names in places.items():
        used.setdefault(os.path.realpath(folder), array("q")).extend(names)
    return used
