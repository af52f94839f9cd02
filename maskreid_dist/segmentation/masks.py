"""Masks made by a network, into a folder that mirrors the data set; what is there already is kept."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from maskreid_dist.errors import UserError
from maskreid_dist.files import check_writable
from maskreid_dist.segmentation.networks import (
    INPUT_HEIGHT,
    SegmentationModel,
    Segmenter,
    default_height,
    find_weights,
    licence_of,
    load_segmenter,
)
from maskreid_dist.segmentation.pose import PoseSegmenter
from maskreid_shards import Layout, Source
from maskreid_shards.atomic import PARTIAL, write_atomically
from maskreid_shards.bad_inputs import BadInput, BadInputs, OnBadImage
from maskreid_shards.checks import check_layout, check_mask_is_no_image
from maskreid_shards.decode import IMAGE_FORMATS, as_rgb, decode
from maskreid_shards.image_policy import OnOrientation, OrientationError, orientation_message
from maskreid_shards.links import check_links
from maskreid_shards.masks.landmarks import landmarks_file
from maskreid_shards.masks.maker import NOTE
from maskreid_shards.masks.options import mirrored
from maskreid_shards.masks.policy import png_bytes
from maskreid_shards.opening import read_json, regular_only
from maskreid_shards.precheck import check_images
from maskreid_shards.writing import read_or_refuse

Landmarker = Callable[[Sequence[torch.Tensor]], list[NDArray[np.float64]]]


@dataclass(frozen=True)
class SegmentationSettings:
    """What decides a mask besides the image. Masks are soft: round(255 x probability of person)."""

    model: SegmentationModel
    weights_sha256: str
    input_height: int = INPUT_HEIGHT
    on_orientation: OnOrientation = "fail"
    version: int = 1


@dataclass(frozen=True)
class SegmentationReport:
    """`made` masks were written now, `kept` ones were there. `empty` of those made hold no pixel above 127.
    `unreadable` images have none."""

    folder: Path
    made: int
    kept: int
    empty: int
    unreadable: int = 0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [
            *self.notes,
            f"masks: {self.made} made, {self.kept} kept in {self.folder}; {self.empty} of those made are "
            "empty" + (f"; {self.unreadable} images cannot be read" if self.unreadable else ""),
        ]


def segment(
    layout: Layout,
    folder: Path,
    *,
    model: SegmentationModel,
    weights: Path | None = None,
    device: str = "auto",
    batch_size: int = 16,
    input_height: int | None = None,
    landmarks: bool = False,
    on_orientation: OnOrientation = "fail",
    on_bad_image: OnBadImage = "fail",
    follow_links: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentationReport:
    """Write a mask for every image of the layout that has none in `folder` yet.

    To resume is to run it again. `folder` can then be given as `MaskOptions(location=...)`. `device` "auto"
    is the GPU where there is one; `input_height` None is `default_height(model)`. `progress(done, total)`
    counts images; a download has a bar of torch's own. `landmarks`: of pose, a file beside each mask too
    (`maskreid_shards.masks.landmarks`). `follow_links`: of images that are links out of the data set too.
    Images that have no mask yet are all read before the first one is made: bad ones are named together, up to
    `bad_inputs.CAP`, or get no mask and are counted (`on_bad_image`).

    Raises UserError: see `find_weights`, `load_segmenter`, `write_masks`; an unknown device, an image's
    orientation under "fail". ShardError: see `check_layout`, `check_links`, `check_images`.
    """
    where = _device(device)
    if landmarks and model != "pose":
        raise UserError(f"landmarks: {model} finds none; use the model pose")
    check_writable(folder, folder=True)  # before anything is fetched
    file = find_weights(model, weights, progress=sys.stderr.isatty())
    with open(file, "rb", opener=regular_only) as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    height = default_height(model) if input_height is None else input_height
    settings = SegmentationSettings(model, sha256, height, on_orientation)
    sources = [source for part in layout.splits.values() for source in part]
    # All that can be refused is, before the folder is there.
    check_layout(layout)
    notes = check_links(layout, None, follow=follow_links)
    new = is_new_folder(folder, settings)
    waiting = [source for _, source in _waiting(mask_files(sources, folder), landmarks)]
    segmenter = load_segmenter(model, file, where, input_height=height)
    try:
        check_images(waiting, on_bad_image=on_bad_image, on_orientation=on_orientation)
    except OrientationError as error:
        raise UserError(orientation_message(error, sources)) from None
    if new or on_orientation != "fail":
        note = {**asdict(settings), "licence": licence_of(model, weights)}
        write_atomically(folder / NOTE, (json.dumps(note, indent=1) + "\n").encode())
    report = write_masks(
        sources,
        folder,
        segmenter,
        landmarker=segmenter.landmarks if landmarks and isinstance(segmenter, PoseSegmenter) else None,
        batch_size=batch_size,
        on_orientation=on_orientation,
        on_bad_image=on_bad_image,
        progress=progress,
    )
    return replace(report, notes=tuple(notes))


def is_new_folder(folder: Path, settings: SegmentationSettings) -> bool:
    """Whether the folder is missing or empty; where it is neither, it was begun with these settings.

    Raises UserError: other settings, a folder that holds something else, or one that cannot be written.
    """
    check_writable(folder, folder=True)
    note = folder / NOTE
    wanted = asdict(settings)
    if note.is_file():
        try:
            found = read_json(note)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{note}: not the settings of a segmentation; choose another folder for the masks"
            )
        # Under "fail" no image had an orientation: its masks fit the other policies too.
        turned = {found.get("on_orientation", "fail"), settings.on_orientation} == {"transpose", "ignore"}
        found["on_orientation"] = "" if turned else settings.on_orientation
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            raise UserError(
                f"{folder}: holds masks made with another {' and '.join(other)}; choose another folder or "
                "remove it"
            )
        return False
    # Another part's program may be writing its note at this moment.
    if folder.exists() and not all(PARTIAL.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(
            f"{folder}: holds no {NOTE}, so its files are not ours; choose a new folder for the masks"
        )
    return True


def mask_files(sources: Sequence[Source], folder: Path) -> dict[Path, Source]:
    """Where each image's mask lies. Raises UserError: two images whose mask would be the same file.
    ShardError: a name that leads out of the folder, a mask that is its image."""
    files: dict[Path, Source] = {}
    for source in sources:
        path = folder / mirrored(source.name)
        check_mask_is_no_image(path, source)
        if files.setdefault(path, source).name != source.name:
            raise UserError(f"{files[path].name} and {source.name}: both have the mask {path}; rename one")
    return files


def write_masks(
    sources: Sequence[Source],
    folder: Path,
    segmenter: Segmenter,
    *,
    landmarker: Landmarker | None = None,
    batch_size: int = 16,
    on_orientation: OnOrientation = "fail",
    on_bad_image: OnBadImage = "fail",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentationReport:
    """Segment the images that have no mask in `folder`, batch by batch; with a landmarker, also those that
    have no landmarks.

    Each file is written beside its place and renamed: a killed run leaves whole ones only. They are not
    synced one by one, so after a power cut some may be of 0 bytes; these are made again. A batch on a GPU, or
    of another size, may round a pixel by one level differently.

    Raises UserError: see `mask_files`. ShardError: an unreadable image; under "skip" it gets no mask.
    """
    files = mask_files(sources, folder)
    waiting = _waiting(files, landmarks=landmarker is not None)
    for parent in {path.parent for path, _ in waiting}:
        parent.mkdir(parents=True, exist_ok=True)
    kept, made, empty = len(files) - len(waiting), 0, 0
    for start in range(0, len(waiting), batch_size):
        batch = waiting[start : start + batch_size]
        read = [(path, _pixels(source, on_orientation, on_bad_image)) for path, source in batch]
        images = [(path, image) for path, image in read if image is not None]
        pixels = [image for _, image in images]
        if landmarker is not None and pixels:
            for (path, _), points in zip(images, landmarker(pixels), strict=True):
                _write(landmarks_file(path), json.dumps(points.round(3).tolist()).encode())
        for (path, _), person in zip(images, segmenter(pixels) if pixels else [], strict=True):
            levels = (person * 255).round().to(torch.uint8).numpy()
            empty += int(levels.max()) < 128
            _write(path, png_bytes(Image.fromarray(levels)))
        made += len(images)
        progress(kept + start + len(batch), len(files))
    return SegmentationReport(folder, made, kept, empty, len(waiting) - made)


def _waiting(files: Mapping[Path, Source], landmarks: bool) -> list[tuple[Path, Source]]:
    """The images that have no mask yet, or no landmarks where they are wanted, after the masks' paths."""
    return [
        (path, source)
        for path, source in files.items()
        if not _is_there(path) or (landmarks and not _is_there(landmarks_file(path)))
    ]


def _is_there(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _pixels(source: Source, on_orientation: OnOrientation, on_bad_image: OnBadImage) -> torch.Tensor | None:
    """uint8 (3, H, W), as a shard shows the image; None for a bad one under "skip"."""
    image = read_or_refuse(source, on_orientation)
    if isinstance(image, BadInput):
        if on_bad_image == "fail":
            raise BadInputs([image])
        return None
    where = str(source.path)
    picture = as_rgb(decode(image.data, formats=IMAGE_FORMATS, where=where), where)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, data, synced=False)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: torch finds no GPU here; use cpu")
    return device
