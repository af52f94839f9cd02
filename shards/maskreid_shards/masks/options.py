"""Where the masks of a data set lie, and what their pixels mean."""

import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from ..checks import relative_name, repeats
from ..decode import GREY_16_MODES
from ..errors import ShardError
from ..image_policy import eight_bits
from ..samples import Layout, Source, Sources
from .finding import find_other_names

MaskKind = Literal["soft", "label", "parsing"]
LABEL_MODES = ("L", "P", "1", "I;16", "I")
LOOKS = 100  # masks that are looked for where a pattern may start from two folders
NEARLY_GREY = 16
DEEP = 2**15  # 16-bit grey that stays below holds labels, or a mask of fewer bits
PNG_BIT_DEPTH = 24  # the byte of a PNG's header that holds the bits per channel


@dataclass(frozen=True)
class MaskOptions:
    """How masks are found and read. The default: the layout's own place, 8-bit grey, 255 = person.

    location: None is the layout's own place (the sibling folder `<folder>_seg`). A folder mirrors the data
        set: `query/a.jpg` has the mask `<location>/query/a.png`. A path pattern has fields, here with their
        values for `train/0002/a.jpg`: {folder} train/0002, {name} a.jpg, {stem} a, {split} the split, {pid}
        the identity as the data set writes it, 0002, {camid} the camera's number. A relative pattern starts
        from the working folder, or from the data set's if more of the first masks lie there.
    kind: "soft" keeps 0..255 as they are; "label" is person where the value is one of `person_labels`;
        "parsing" is person where the value is above 0. Values of a palette picture are its indices.
    invert: what is not person by these rules is; soft values are subtracted from 255.
    landmarks: each sample's json gets the landmarks that lie beside its mask (`masks.landmarks`).
    made: the masks are made for this conversion, a part of them on each of its machines: images are dealt to
        shards before masks are there, by `dealing.MADE_MASK_BYTES`. No more depends on it.

    Raises ShardError: labels without the kind "label" or the reverse, a label outside 0..65535, an unknown
    field in a pattern.
    """

    location: str | None = None
    kind: MaskKind = "soft"
    person_labels: tuple[int, ...] = ()
    invert: bool = False
    landmarks: bool = False
    made: bool = field(default=False, repr=False)  # what is recorded of a shard's options does not hold it

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ShardError(f"mask kind {self.kind!r}: use one of {', '.join(get_args(MaskKind))}")
        if (self.kind == "label") != bool(self.person_labels):
            raise ShardError(
                f'masks of kind "{self.kind}" and person labels {list(self.person_labels)}: '
                'give at least one person label with "label", none with the other kinds'
            )
        for label in self.person_labels:
            if not 0 <= label <= 65535:
                raise ShardError(f"person label {label}: labels are pixel values, 0 to 65535")
        if self.location is not None and "{" in self.location:
            _check_pattern(self.location)

    def describe(self) -> str:
        """What the pixels mean, for the manifest; empty for the default. Without `location`: a path of this
        machine."""
        parts = [] if self.kind == "soft" else [" ".join([self.kind, *map(str, self.person_labels)])]
        return ", ".join(parts + ["inverted"] * self.invert)


def _check_pattern(pattern: str) -> None:
    known = ("folder", "name", "stem", "split", "pid", "camid")
    try:
        fields = [
            field for _, field, spec, conversion in string.Formatter().parse(pattern) if field is not None
        ]
    except ValueError as error:
        raise ShardError(f"mask pattern {pattern!r}: {error}; write braces around field names only") from None
    for name in fields:
        if name not in known:
            raise ShardError(
                f"mask pattern {pattern!r}: unknown field {{{name}}}; "
                f"there are {', '.join(f'{{{name}}}' for name in known)}"
            )
    if not {"stem", "name"} & set(fields):
        raise ShardError(
            f"mask pattern {pattern!r}: holds neither {{stem}} nor {{name}}, so names a single file"
        )


def place_masks(layout: Layout, options: MaskOptions) -> Layout:
    """The layout with each source's `mask_path` where `options.location` says, or where it lies under another
    name (`find_other_names`; a pattern says the name itself). Nothing is opened.

    Raises ShardError: a location without fields that is not a folder, or where two images (`a.jpg`, `a.png`)
    would have one mask. A pattern may give several images one mask: it says so itself.
    """
    location = options.location
    if location is None:
        return find_other_names(layout)
    if "{" in location:
        pattern = _from_home(layout, location)
        return _with_masks(layout, lambda source: _fill(pattern, source))
    if not Path(location).is_dir():
        raise ShardError(
            f"{location}: no such folder of masks; give one that mirrors the data set, or a pattern with "
            f"{{stem}}"
        )
    for other, name in repeats(lambda: ((mirrored(source.name), source.name) for source in layout.sources())):
        if other != name:
            raise ShardError(
                f"{other} and {name}: both have the mask {mirrored(name)}; rename one, "
                "or give a pattern with {name}"
            )
    mirror = _mirror(layout, Path(location))
    return find_other_names(_with_masks(layout, lambda source: mirror / mirrored(source.name)))


def _from_home(layout: Layout, pattern: str) -> str:
    """The pattern, below the data set's folder if more of the first masks lie there."""
    if layout.home is None:
        return pattern
    below = str(layout.home.absolute()).replace("{", "{{").replace("}", "}}") + f"/{pattern}"
    first = list(islice(layout.sources(), LOOKS))
    here, there = (sum(_fill(one, source).exists() for source in first) for one in (pattern, below))
    return below if there > here and not Path(pattern).is_absolute() else pattern


def _mirror(layout: Layout, location: Path) -> Path:
    """Where in `location` the data set is mirrored: `location` itself, or below it one of the folders that
    lead to a list's images. Of `/data/images/a.jpg`, with the root `/data/images`, the mask may be
    `location/a.png`, `location/images/a.png` or `location/data/images/a.png`."""
    if layout.root is None:
        return location
    parts = layout.root.parts[1:]
    for start in range(len(parts), -1, -1):
        mirror = location.joinpath(*parts[start:])
        if mirror.is_dir() and any((mirror / mirrored(source.name)).exists() for source in layout.sources()):
            return mirror
    return location


def _with_masks(layout: Layout, path_of: Callable[[Source], Path]) -> Layout:
    splits = {
        split: Sources.of(replace(source, mask_path=path_of(source)) for source in sources)
        for split, sources in layout.splits.items()
    }
    return replace(layout, splits=splits)


def mirrored(name: str) -> str:
    """The relative path of the mask of the image `name` in a folder that mirrors the data set.

    Raises ShardError for a name that would lead out of that folder.
    """
    return str(relative_name(name).with_suffix(".png"))


def _fill(pattern: str, source: Source) -> Path:
    name = relative_name(source.name)
    return Path(
        pattern.format(
            folder=name.parent,
            name=name.name,
            stem=name.stem,
            split=source.split,
            pid=source.identity or source.pid,
            camid=source.camid,
        )
    )


def person_mask(picture: Image.Image, data: bytes, options: MaskOptions) -> Image.Image | None:
    """The mask (mode L, 255 = person) that a decoded picture means, in its own size; None for an unfit mode.

    RGB of three nearly equal channels is grey; 16-bit grey that uses them is scaled. `data` are the file's
    bytes: Pillow scales 1, 2 and 4-bit grey of a PNG to 0..255, and the labels are what stood in the file.
    """
    if options.kind == "soft":
        if picture.mode in GREY_16_MODES:
            values = np.asarray(picture)
            if values.max() < DEEP:
                return None
            picture = Image.fromarray(eight_bits(values))
        grey = picture if picture.mode == "L" else _as_grey(picture, NEARLY_GREY)
        if grey is None or not options.invert:
            return grey
        return Image.fromarray(255 - np.asarray(grey))
    if picture.mode in LABEL_MODES:
        labels = np.asarray(picture)
        if picture.mode == "L" and picture.format == "PNG" and data[PNG_BIT_DEPTH] < 8:
            labels = labels // (255 // (2 ** data[PNG_BIT_DEPTH] - 1))
    else:
        grey = _as_grey(picture)
        if grey is None:
            return None
        labels = np.asarray(grey)
    person = labels > 0 if options.kind == "parsing" else np.isin(labels, options.person_labels)
    return Image.fromarray(np.where(person != options.invert, 255, 0).astype(np.uint8))


def _as_grey(picture: Image.Image, apart: int = 0) -> Image.Image | None:
    """A black-and-white, RGB or palette picture without colour, as mode L; None where there is colour or
    alpha. Channels may differ by `apart`, such as a JPEG makes of grey."""
    if picture.mode not in ("1", "RGB", "P"):
        return None
    rgb = picture.convert("RGB")
    red, green, blue = rgb.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        return red
    channels = np.asarray(rgb)
    return rgb.convert("L") if int((channels.max(2) - channels.min(2)).max()) <= apart else None
