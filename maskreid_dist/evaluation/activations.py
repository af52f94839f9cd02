"""Where the network responds to an image: maps of the streams' stems and of the levels they share.

A map is the sum of squared activations over the channels (Zagoruyko and Komodakis, arXiv 1612.03928), as
Torchreid's tool draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from maskreid_dist.config import Config
from maskreid_dist.data.transforms import EvaluationTransform, cut_out
from maskreid_dist.model import ReIDNetwork

Map = NDArray[np.float32]
SHARED = ("low", "high")  # levels that are shown


@dataclass(frozen=True, eq=False)
class Response:
    """What the network was given of one image, and its maps, (h, w) float32 in 0 to 1, by the part's name:
    "raw", "masked" (the stems of its streams), "low", "high"."""

    image: Image.Image
    mask: Image.Image
    maps: dict[str, Map]


@torch.inference_mode()
def responses(
    network: ReIDNetwork, config: Config, pairs: Sequence[tuple[Image.Image, Image.Image]]
) -> list[Response]:
    """Of images and masks, by a network in eval mode, on the CPU or wherever its weights lie."""
    transform = EvaluationTransform(config.data)
    moved = [transform(image, mask) for image, mask in pairs]
    device = next(network.parameters()).device
    image_B3HW = torch.stack([torch.Tensor.as_subclass(image, Tensor) for image, _ in moved])
    mask_B1HW = torch.stack([torch.Tensor.as_subclass(mask, Tensor) for _, mask in moved])
    maps = _maps(network, image_B3HW.to(device), mask_B1HW.to(device))
    return [
        Response(
            to_pil_image(image_B3HW[row]),
            to_pil_image(mask_B1HW[row]),
            {name: energy[row].cpu().numpy() for name, energy in maps.items()},
        )
        for row in range(len(pairs))
    ]


def _maps(network: ReIDNetwork, image_B3HW: Tensor, mask_B1HW: Tensor) -> dict[str, Tensor]:
    parts = network.shown_maps(image_B3HW, mask_B1HW)
    return {name: _energy(x_BCHW) for name, x_BCHW in parts.items()}


def _energy(x_BCHW: Tensor) -> Tensor:
    """(B, H, W) in 0 to 1, each image by its own maximum."""
    energy = x_BCHW.float().square().sum(dim=1)
    return energy / energy.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def drawn(response: Response) -> list[tuple[Image.Image, str]]:
    """The image, the mask-cut image, and every map over what its part saw, with captions."""
    cut = cut_out(response.image, response.mask)
    covered = _share_on_person(np.ones((1, 1), np.float32), response.mask)
    pictures = [(response.image, "image"), (cut, f"mask-cut: person {100 * covered:.0f} %")]
    for name, energy in response.maps.items():
        under = cut if name == "masked" else response.image
        share = _share_on_person(energy, response.mask)
        title = f"{name} stream" if name not in SHARED else f"{name}, both"
        pictures.append((_overlay(under, energy), f"{title}: {100 * share:.0f} % on the person"))
    return pictures


def _share_on_person(energy: Map, mask: Image.Image) -> float:
    """The part of a map that lies within the mask."""
    large = np.asarray(_enlarged(energy, mask.size))
    person = np.asarray(mask.convert("L"), np.float32) / 255
    return float((large * person).sum() / max(float(large.sum()), 1e-12))


def _enlarged(energy: Map, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(energy, "F").resize(size, Image.Resampling.BILINEAR)


def _overlay(under: Image.Image, energy: Map) -> Image.Image:
    """The map over the picture in grey."""
    from matplotlib import colormaps

    strength = np.asarray(_enlarged(np.sqrt(energy), under.size)).clip(0, 1)
    colours = Image.fromarray((255 * colormaps["inferno"](strength)[..., :3]).astype(np.uint8))
    return Image.blend(under.convert("L").convert("RGB"), colours, 0.65)
