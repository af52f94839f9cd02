"""Images and masks behind links that lead out of the data set: what a stranger's data set points to would
otherwise stand in the shards."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ShardError
from .masks.landmarks import landmarks_file
from .masks.options import MaskOptions
from .samples import Layout, Source, Sources

EXAMPLES = 3


def check_links(layout: Layout, masks: MaskOptions | None, *, follow: bool = False) -> list[str]:
    """A note on images and masks that are, or lie behind, links out of the data set, where `follow` allows
    these.

    The data set is `layout.roots`, and for masks the place that `masks` names; these folders may be links
    themselves, and links from one place in them to another are as good as files. A mask below none of them
    belongs to the folder it is in. `masks` None: no mask will be read. Folders are listed, no file is
    opened, and a link to nothing is left to those who miss the file.

    Raises ShardError: there is such a link, and `follow` is False.
    """
    found = _links_out(layout, masks)
    if not found.counts:
        return []
    if follow:
        shown = ", ".join(f"{link} to {target}" for link, target in list(found.links.items())[:EXAMPLES])
        more = ", ..." if len(found.links) > EXAMPLES else ""
        return [f"{found.counted()} lie behind links out of the data set, which were followed: {shown}{more}"]
    link, target = next(iter(found.links.items()))
    raise ShardError(
        f"{link}: is a link to {target}, out of the data set; {found.counted()} lie behind such links: copy "
        "the files into it, or allow the links if you trust them (--follow-links)"
    )


@dataclass
class _Found:
    """How many files lie behind links out of the data set, by what they are, and the first of these links,
    with their targets."""

    counts: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, link: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if len(self.links) <= EXAMPLES and link not in self.links:
            self.links[link] = os.path.realpath(link)

    def counted(self) -> str:
        """For a line."""
        return " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in self.counts.items())


def _links_out(layout: Layout, masks: MaskOptions | None) -> _Found:
    found = _Found()
    parts = [Sources.of(part) for part in layout.splits.values()]
    of_images = {place for part in parts for place in part.places()}
    of_masks = {place for part in parts for place in part.places(masks=True)} if masks is not None else set()
    places = of_images | of_masks
    # A pattern may lead to masks anywhere; a layout that was put together by hand may have no folder.
    elsewhere = of_masks if layout.roots else places
    tree = _Tree([*layout.roots, *_mask_roots(masks)], elsewhere)
    suspected = {place: names for place in places if (names := tree.suspected(place)) != set()}
    if not suspected and not any(part.any_arrays for part in parts):
        return found
    of_many: dict[str, str | None] = {}  # files that hold many images, each looked at once
    for source in layout.sources():
        for what, path in _files(source, masks):
            place, slash, name = path.rpartition("/")
            names = suspected.get(place + slash, set())
            link = None
            if what == "image" and source.array is not None:
                link = of_many[path] if path in of_many else of_many.setdefault(path, tree.link_out(path))
            elif names is None or name in names:
                link = tree.link_out(path)
            if link is not None:
                found.add(what, link)
    return found


def _files(source: Source, masks: MaskOptions | None) -> Iterator[tuple[str, str]]:
    """What is read of a source, and what it is."""
    inside = source.array is not None and source.path.is_dir()
    yield "image", str(source.path / "data.mdb" if inside else source.path)
    if masks is not None and source.mask_path is not None:
        yield "mask", str(source.mask_path)
        if masks.landmarks:
            yield "mask", str(landmarks_file(source.mask_path))


def _mask_roots(masks: MaskOptions | None) -> list[Path]:
    """The folder that the user names, or what stands before a pattern's first field."""
    if masks is None or masks.location is None:
        return []
    start, brace, _ = masks.location.partition("{")
    return [Path(start.rpartition("/")[0] or start[:1] if brace else start)]


class _Tree:
    """The folders of a data set, and where they really lie."""

    def __init__(self, roots: Iterable[Path], elsewhere: Iterable[str]) -> None:
        """`elsewhere`: folders that count as roots where they are below none."""
        self.roots = set(map(_absolute, roots))
        self.roots |= {where for where in map(_absolute, elsewhere) if not _below(where, self.roots)}
        self.real_roots = {os.path.realpath(root) for root in self.roots}

    def suspected(self, place: str) -> set[str] | None:
        """The names in a folder that are links; None (all) where the folder lies out of the data set."""
        if not self._stays(place):
            return None
        try:
            with os.scandir(place or ".") as entries:
                return {entry.name for entry in entries if entry.is_symlink()}
        except OSError:
            return set()  # who misses the files says so

    def _stays(self, path: str) -> bool:
        return _below(os.path.realpath(path), self.real_roots)

    def link_out(self, path: str) -> str | None:
        """The first link on the way to a file that leads it out of the data set; None where it stays, or is
        not there."""
        if self._stays(path) or not Path(path).exists():
            return None
        path = _absolute(path)
        below = [way for way in _ways(path) if way not in self.roots and _below(way, self.roots)]
        out = [way for way in below if Path(way).is_symlink() and not self._stays(way)]
        return out[-1] if out else path


def _below(path: str, folders: set[str]) -> bool:
    """Whether an absolute path is one of the folders, or in one."""
    return any(way in folders for way in _ways(path))


def _ways(path: str) -> Iterator[str]:
    """An absolute path and the folders above it, upwards."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield "/"


def _absolute(path: str | Path) -> str:
    return os.path.normpath(Path(path).absolute())
