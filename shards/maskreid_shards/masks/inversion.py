"""Sets of masks whose person and background have changed places, told by where persons stand in crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import ShardError
from ..opening import PICTURE_BYTES, read_file
from ..samples import DISTRACTOR_PID, Layout, Source
from .options import MaskOptions, person_mask
from .policy import PERSON_LEVEL, label_levels, open_mask, without_alpha

LOOKS = 200  # masks looked at, spread evenly over the identities' images
# Persons stand in the middle of crops. A mask is taken for inverted where half of the border is person, and
# more of it than of the middle by APART: of the identities' masks in `walkers/` 0.1 % as they are, 90 %
# inverted. Beside a person at one side of the crop, less than half of the border is person.
BORDER, APART = 0.5, 0.3
RING = 16  # the border is this part of the smaller side wide
FEWEST = 10  # at least a tenth of the masks must have two levels to be judged by


@dataclass(frozen=True)
class InvertedMasks:
    """Of `judged` masks that are not the same everywhere, `found` look inverted; `example` is the image of
    one."""

    judged: int
    found: int
    example: str
    options: MaskOptions

    def __str__(self) -> str:
        remedy = "leave out --invert-masks" if self.options.invert else "give --invert-masks"
        if self.options.kind == "label" and not self.options.invert:
            labels = ", ".join(map(str, self.options.person_labels))
            remedy += f", or another --person-label than {labels}"
        return (
            f"{self.found} of {self.judged} masks that were looked at have the person at the border and "
            f"background in the middle, such as that of {self.example}; {remedy}"
        )


def find_inverted(layout: Layout, options: MaskOptions) -> InvertedMasks | None:
    """Look at LOOKS masks of identities, as `options` read them: what most of them say, if that is that they
    are inverted.

    Masks that are missing, unreadable or label maps are left to the mask policy; those that are the same
    everywhere (whole images) say nothing, and where nearly all are, nothing is said.
    """
    sources = [
        source
        for split in layout.splits.values()
        for source in split[:: -(-max(len(split), 1) // LOOKS)]
        if source.pid > DISTRACTOR_PID
    ]
    sources = sources[:: -(-max(len(sources), 1) // LOOKS)]
    masks = _masks(sources, options)
    found = [source for source, mask in masks if looks_inverted(mask)]
    if 2 * len(found) <= len(masks) or FEWEST * len(found) < len(sources):
        return None
    return InvertedMasks(len(masks), len(found), found[0].name, options)


def looks_inverted(mask: Image.Image) -> bool:
    """Of a mask of mode L."""
    border, middle = border_and_middle(mask)
    return border >= BORDER and border - middle >= APART


def border_and_middle(mask: Image.Image) -> tuple[float, float]:
    """The person's shares of the border, a ring, and of the middle (half of the height, a third of the
    width)."""
    values = np.asarray(mask, np.float32) / 255
    height, width = values.shape
    ring = max(1, min(height, width) // RING)
    inner = values[ring : height - ring, ring : width - ring]
    border = float(values.sum() - inner.sum()) / max(values.size - inner.size, 1)
    middle = values[height // 4 : height - height // 4, width // 3 : width - width // 3]
    return border, float(middle.mean())


def _masks(sources: Sequence[Source], options: MaskOptions) -> list[tuple[Source, Image.Image]]:
    """The readable masks that are not on one side of PERSON_LEVEL everywhere."""
    masks = []
    for source in sources:
        mask = _mask(source, options)
        if mask is not None:
            lowest, highest = mask.getextrema()
            if lowest < PERSON_LEVEL <= highest:  # type: ignore[operator]  # of one band: two numbers
                masks.append((source, mask))
    return masks


def _mask(source: Source, options: MaskOptions) -> Image.Image | None:
    try:
        data = read_file(source.mask_path, PICTURE_BYTES) if source.mask_path is not None else b""
        picture, _ = without_alpha(open_mask(data), options)
    except (OSError, ShardError):
        return None
    mask = person_mask(picture, data, options)
    if mask is None or (options.kind == "soft" and label_levels(mask, inverted=options.invert)):
        return None
    return mask
