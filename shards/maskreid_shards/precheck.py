"""Cheap looks at all inputs before the first byte is written, or the first mask made: are they there, are
they what they are called, is there room for them?"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from .bad_inputs import CAP, BadInput, BadInputs, ImageKind, OnBadImage, bad_image
from .errors import BadImageError, ShardError
from .file_kinds import HEAD_BYTES, misnamed
from .image_policy import OnOrientation
from .masks.policy import OnBadMask, find_mask
from .opening import read_head
from .samples import Source
from .writing import bad_mask, image_format, no_file, read_or_refuse


def check_inputs(
    sources: Iterable[Source], folder: Path, *, on_bad_image: OnBadImage, on_bad_mask: OnBadMask
) -> None:
    """Look at each image's size and first bytes, and whether its mask is there. No picture is decoded,
    but one without a mask that may be left out.

    Raises BadInputs: what the policies stop at, the first CAP of it. ShardError: the images alone need more
    bytes than the disk of `folder` has.
    """
    bad: list[BadInput] = []
    needed = 0
    for source in sources:
        size, found = _image(source)
        needed += size
        if found is not None and on_bad_image == "fail":
            bad.append(found)
        elif (
            found is None
            and on_bad_mask == "fail"
            and (missing := find_mask(source.mask_path, source.name))
            # An image that is left out needs no mask, and none was made for it.
            and not (on_bad_image == "skip" and isinstance(read_or_refuse(source, "ignore"), BadInput))
        ):
            bad.append(bad_mask(source, missing))
        if len(bad) >= CAP:
            break
    if bad:
        raise BadInputs(bad)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ShardError(
            f"{folder.parent}: {needed / 1e6:.0f} MB of images, but {free / 1e6:.0f} MB are free; make room "
            "or choose another place"
        )


def check_images(
    sources: Iterable[Source], *, on_bad_image: OnBadImage, on_orientation: OnOrientation
) -> None:
    """Read each image as a conversion does, before work on them that takes far longer (a network's masks).

    Raises BadInputs: the first CAP bad images under "fail". OrientationError: an image's under "fail".
    """
    bad: list[BadInput] = []
    for source in sources:
        found = read_or_refuse(source, on_orientation)
        if isinstance(found, BadInput) and on_bad_image == "fail":
            bad.append(found)
        if len(bad) >= CAP:
            break
    if bad:
        raise BadInputs(bad)


def _image(source: Source) -> tuple[int, BadInput | None]:
    """An image's size in bytes, and what is wrong with it at first sight."""
    if source.array is not None:  # inside a larger file, which the scanner has read
        return 0, None
    where = str(source.path)
    try:
        suffix, expected = image_format(source)
        try:
            head, size = read_head(source.path, HEAD_BYTES)
        except OSError as error:
            raise no_file(source, error) from error
        if wrong := misnamed(head, size, suffix, expected):
            raise BadImageError(f"{where}: {wrong}", "unreadable")
    except BadImageError as error:
        kind: ImageKind = error.kind  # type: ignore[assignment]  # one of them, by its class
        return 0, bad_image(kind, source.name, error, where)
    return size, None
