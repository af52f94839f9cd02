"""What the scanners share: listing image folders, and turning what was found into sources."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ShardError
from ..opening import TEXT_BYTES, read_file
from ..samples import Source, Sources, numbered

MASK_SUFFIX = "_seg"
# A file that looks like an image but does not match a layout's pattern stops the scan; anything else is a
# stray.
SYSTEM_FOLDERS = ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image: `rest` is its path below `folder`, itself relative to the data set's. Masks mirror
    `<folder>_seg`."""

    folder: str
    rest: str
    pid: int
    camid: int
    array: str | None = None
    identity: str = ""


def sources(src: Path, split: str, found: Iterable[ImageEntry]) -> Sources:
    """Sources with keys, in the order given. With `array`, `folder` is the file and `rest` the image's
    name."""
    images = list(found)
    keys = numbered(image.pid for image in images)
    # Once a folder, not once an image: making paths took a twelfth of a conversion.
    places = {
        image.folder: (src / image.folder, src / f"{_mask_folder(image)}{MASK_SUFFIX}")
        for image in {image.folder: image for image in images}.values()
    }
    return Sources.of(
        Source(
            path=places[image.folder][0] if image.array else places[image.folder][0] / image.rest,
            mask_path=places[image.folder][1] / PurePosixPath(image.rest).with_suffix(".png"),
            pid=image.pid,
            camid=image.camid,
            split=split,
            key=key,
            name=f"{image.folder}/{image.rest}",
            array=image.array,
            identity=image.identity,
        )
        for image, key in zip(images, keys, strict=True)
    )


def _mask_folder(image: ImageEntry) -> str:
    return str(PurePosixPath(image.folder).with_suffix("")) if image.array else image.folder


def list_images(src: Path, folder: str) -> tuple[list[str], list[str]]:
    """Names of the images in `src/folder`, sorted, and of its other files (relative to `src`)."""
    try:
        listed = sorted(child.name for child in (src / folder).iterdir())
    except OSError as error:
        raise ShardError(
            f"{src / folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    names, strays = [], []
    for name in listed:
        # "._x.jpg" is what macOS leaves beside a copied x.jpg: not an image, although named like one.
        if name.startswith(".") or not name.lower().endswith(IMAGE_SUFFIXES):
            strays.append(f"{folder}/{name}")
        else:
            names.append(name)
    return names, strays


def list_folders(src: Path, folder: str = ".") -> list[str]:
    """Names of the visible folders in `src/folder`, sorted, without those of masks (`x_seg` beside `x`) and
    those that systems leave."""
    names = {child.name for child in (src / folder).iterdir() if child.is_dir()}
    return sorted(
        name
        for name in names
        if not name.startswith(".")
        and name not in SYSTEM_FOLDERS
        and not (name.endswith(MASK_SUFFIX) and name.removesuffix(MASK_SUFFIX) in names)
    )


def need_folders(src: Path, folders: Iterable[str]) -> None:
    """Raise ShardError unless `src` holds all `folders`, with a hint where the missing one may be."""
    folders = list(folders)
    if not src.is_dir():
        raise ShardError(f"{src}: no such folder; give the one that holds {', '.join(folders)}")
    for folder in folders:
        if not (src / folder).is_dir():
            raise ShardError(f"{src}: folder {folder} is missing{_hint(src, folder, folders)}")


def need_file(path: Path) -> Path:
    """The path, if it is a file; else a ShardError that names it."""
    if not path.is_file():
        raise ShardError(f"{path}: missing; is this the right folder, and the whole data set?")
    return path


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered, stripped lines of a text file that are not blank."""
    try:
        text = read_file(need_file(path), TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if "\0" in text:
        raise ShardError(f"{path}: not a text file (it holds a NUL); fetch it again")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _hint(src: Path, folder: str, folders: list[str]) -> str:
    """Where the missing folder may be: one level deeper, or under a slightly different name."""
    children = sorted(child.name for child in src.iterdir() if child.is_dir())
    for child in children:
        if (src / child / folder).is_dir():
            return f"; did you mean {src / child}?"
    close = difflib.get_close_matches(folder, [name for name in children if name not in folders], n=1)
    return f"; is it {close[0]}?" if close and not close[0].endswith(MASK_SUFFIX) else ""
