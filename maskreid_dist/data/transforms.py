"""Paired transforms: whatever moves pixels moves image and mask alike (torchvision v2 on `tv_tensors`)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from maskreid_dist.config import DataConfig
from maskreid_dist.model.network import MEAN_COLOUR

Pair = tuple[Tensor, Tensor]  # uint8 image (3, H, W) and uint8 mask (1, H, W), 255 = person
Picture = PILImage.Image | Tensor  # decoded, and not yet a tensor or already one
PairTransform = Callable[[Picture, Picture, int], Pair]


class TrainTransform:
    """Resize, random crop, random mirror on both; colour jitter and erasing on the image (off by default),
    erasing on the mask too where the recipe says so.

    The third argument of the call seeds all of it, so that a sample's augmentation depends on its place in
    the plan and not on the process that draws it.
    """

    def __init__(self, config: DataConfig) -> None:
        steps: list[v2.Transform] = [
            v2.Resize([config.resize_height, config.resize_width], antialias=True),
            v2.RandomCrop([config.height, config.width]),
            v2.RandomHorizontalFlip(config.mirror),
        ]
        jitter = (config.brightness, config.contrast, config.saturation, config.hue)
        if any(jitter):
            steps.append(v2.ColorJitter(*jitter))
        self.steps = v2.Compose(steps)
        nobody = [0] if config.erase_mask else []
        self.erase = v2.RandomErasing(config.erasing, value=[*(round(c) for c in MEAN_COLOUR), *nobody])
        self.erase_mask = config.erase_mask

    def __call__(self, image: Picture, mask: Picture, seed: int) -> Pair:
        with _seeded(seed):
            moved_image, moved_mask = self.steps(*as_tensors(image, mask))
            if not self.erase_mask:
                return self.erase(moved_image), moved_mask  # an erased patch hides the person; the mask stays
            parts = [torch.Tensor.as_subclass(part, Tensor) for part in (moved_image, moved_mask)]
            both = tv_tensors.Image(torch.cat(parts))
            erased_image, erased_mask = self.erase(both).split([3, 1])
            return tv_tensors.Image(erased_image), tv_tensors.Mask(erased_mask)


class EvaluationTransform:
    """Resize and centre crop; nothing random."""

    def __init__(self, config: DataConfig) -> None:
        self.steps = v2.Compose(
            [
                v2.Resize([config.resize_height, config.resize_width], antialias=True),
                v2.CenterCrop([config.height, config.width]),
            ]
        )

    def __call__(self, image: Picture, mask: Picture, seed: int = 0) -> Pair:
        moved: Pair = self.steps(*as_tensors(image, mask))
        return moved


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU's global generator, which v2 draws from, starts from `seed` and is restored afterwards.

    Not `torch.manual_seed` in `fork_rng`: those seed the GPUs' generators too, and format a stack trace each
    time, which took half of the augmentation's time.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def as_tensors(image: Picture, mask: Picture) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An RGB picture and its 8-bit mask as the types by which v2 tells them apart."""
    return tv_tensors.Image(image), tv_tensors.Mask(mask_as_tensor(mask))


def mask_as_tensor(mask: Picture) -> Tensor:
    """(1, H, W) uint8."""
    tensor: Tensor = mask if isinstance(mask, Tensor) else v2.functional.pil_to_tensor(mask)
    return tensor


def cut_out(image: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
    """The masked image as a person sees it: the image inside the mask, the mean colour outside."""
    background = PILImage.new("RGB", image.size, tuple(round(c) for c in MEAN_COLOUR))
    return PILImage.composite(image, background, mask.convert("L"))
