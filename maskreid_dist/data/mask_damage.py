"""Masks made worse on purpose (`data.mask_damage`), to see how good they must be.

A sample's damage depends on its key: it is the same in every epoch, in every process, at training and at
evaluation, as that of a segmenter that fails on this image would be. Pixels are those of the stored pair.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskreid_dist.data.decoders import Decode
from maskreid_dist.data.transforms import Picture, mask_as_tensor
from maskreid_shards import RawPair, Split, decode_mask, decode_pair

FULL, PERSON = 255, 128


def damaged(decode: Decode, damage: str | None, split: Split) -> Decode:
    """`decode`, and what the recipe's `data.mask_damage` does to the masks of `split` after it."""
    if damage is None:
        return decode
    kind, _, amount = damage.partition("=")
    return DamagedMasks(decode, kind, float(amount), split)


@dataclass(frozen=True)
class DamagedMasks:
    """erode, dilate: by a square of 2 amount + 1 pixels; shift: by amount pixels in a direction drawn for the
    sample, no person where it leaves; drop, swap: so large a share of the samples gets a full mask, as a
    conversion makes of a missing one, or that of an image of another identity."""

    decode: Decode
    kind: str
    amount: float
    split: Split

    def __call__(self, raw: RawPair) -> tuple[Picture, Picture]:
        """Raises maskreid_shards.ShardError as `decode` does."""
        image, mask = self.decode(raw)
        return image, self.of(raw, mask_as_tensor(mask).as_subclass(Tensor))

    def of(self, raw: RawPair, mask_1HW: Tensor) -> Tensor:
        """What becomes of this sample's mask, uint8."""
        if self.kind == "dilate":
            return _widened(mask_1HW, int(self.amount))
        if self.kind == "erode":
            return FULL - _widened(FULL - mask_1HW, int(self.amount))
        place = _drawn(self.kind, raw.key)
        if self.kind == "shift":
            angle = 2 * math.pi * place
            return _shifted(
                mask_1HW, round(self.amount * math.sin(angle)), round(self.amount * math.cos(angle))
            )
        if place >= self.amount:
            return mask_1HW
        return torch.full_like(mask_1HW, FULL) if self.kind == "drop" else self._of_another(raw, mask_1HW)

    def _of_another(self, raw: RawPair, mask_1HW: Tensor) -> Tensor:
        """The mask of the first image of another identity from a place drawn for the sample; its own where
        there is none."""
        count = len(self.split)
        first = int(_drawn("other", raw.key) * count)
        for step in range(count):
            number = (first + step) % count
            if self.split.pids[number] != raw.pid:
                height, width = mask_1HW.shape[1:]
                return mask_as_tensor(decode_mask(self.split.read(number), (width, height)))
        return mask_1HW


def mean_iou(damage: str, splits: Sequence[Split]) -> float:
    """Of the damaged masks with the stored ones, person from 128 on, over all images of the splits."""
    values = []
    for split in splits:
        worse = damaged(decode_pair, damage, split)
        assert isinstance(worse, DamagedMasks)
        for raw in split.read_many(np.arange(len(split))):
            stored = mask_as_tensor(decode_pair(raw)[1])
            here, there = stored >= PERSON, worse.of(raw, stored) >= PERSON
            either = int((here | there).sum())
            values.append(int((here & there).sum()) / either if either else 1.0)
    return sum(values) / len(values)


def _widened(mask_1HW: Tensor, pixels: int) -> Tensor:
    """The largest value within so many pixels; beyond the frame there is nothing."""
    wide = F.max_pool2d(mask_1HW[None].float(), 2 * pixels + 1, stride=1, padding=pixels)
    return wide[0].to(mask_1HW.dtype)


def _shifted(mask_1HW: Tensor, down: int, right: int) -> Tensor:
    height, width = mask_1HW.shape[1:]
    moved = torch.zeros_like(mask_1HW)
    if abs(down) < height and abs(right) < width:
        to = (slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right)))
        of = (slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right)))
        moved[:, to[0], to[1]] = mask_1HW[:, of[0], of[1]]
    return moved


def _drawn(word: str, key: str) -> float:
    """Uniform in [0, 1), by the word and the sample's key alone."""
    digest = hashlib.blake2b(f"{word} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
