"""MediaPipe's pose network on a whole crop: the person's mask, and 33 landmarks.

The network was made for a square around a person that a detector found. A re-identification crop is that
square's middle: an eighth of the crop's height is added above and below, and both sides up to a square, by
repeating the outermost pixels. (Stretching the crop instead ruins the masks.)

The mask comes from a square of MASK_SIDE pixels, which `maskreid segment --height` changes; the landmarks
from one of 256, for which the network was published.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from maskreid_dist.errors import UserError
from maskreid_dist.segmentation.tflite import Graph, read_graph
from maskreid_dist.segmentation.tflite_network import TfliteNetwork
from maskreid_dist.segmentation.tflite_window import Window
from maskreid_shards.opening import PICTURE_BYTES, read_file

MASK_SIDE = 192
LANDMARK_SIDE = 256
STRIDE = 32  # from the input to its smallest feature map
MARGIN = 1 / 8  # of the crop's height, above and below
LANDMARKS = 33
MASK_OUTPUT, LANDMARK_OUTPUT = "Identity_2", "Identity"
PER_LANDMARK = 5  # x, y, z, and the logits of visibility and presence
CHUNK = 4  # images that pass the network together on a CPU: more do not fit its caches


class PoseSegmenter:
    """A `Segmenter`; `landmarks` is what else the network finds."""

    def __init__(self, graph: Graph, device: torch.device, where: str, side: int = MASK_SIDE) -> None:
        if side % STRIDE:
            raise UserError(f"height {side}: the pose network takes multiples of {STRIDE}; use {MASK_SIDE}")
        self.device, self.side = device, side
        self.mask_network = TfliteNetwork(graph, [MASK_OUTPUT], where).to(device).eval()
        self.landmark_network = TfliteNetwork(graph, [LANDMARK_OUTPUT], where).to(device).eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, H, W) to the probability of person, float32 (H, W) in 0..1 on the CPU, for each."""
        squares = [_square(image.to(self.device), self.side) for image in images]
        places = [place.window for _, place in squares]
        found = []
        for inside, image in zip(
            self._inside([square for square, _ in squares], places), images, strict=True
        ):
            own = interpolate(inside.sigmoid(), tuple(image.shape[-2:]), mode="bilinear", antialias=True)
            found.append(own[0, 0].clamp(0, 1).cpu())
        return found

    @torch.inference_mode()
    def landmarks(self, images: Sequence[Tensor]) -> list[NDArray[np.float64]]:
        """(33, 3) for each image: x and y in its pixels, and the probability that the point is visible."""
        squares = [_square(image.to(self.device), LANDMARK_SIDE) for image in images]
        raw = self._run(self.landmark_network, [square for square, _ in squares]).double().cpu()
        found = []
        for values, (_, place), image in zip(raw, squares, images, strict=True):
            points = values.view(-1, PER_LANDMARK)[:LANDMARKS]
            x = (points[:, 0] - place.left) * image.shape[2] / place.width
            y = (points[:, 1] - place.top) * image.shape[1] / place.height
            found.append(torch.stack([x, y, points[:, 3].sigmoid()], 1).numpy())
        return found

    def _inside(self, squares: Sequence[Tensor], windows: Sequence[Window]) -> list[Tensor]:
        """The logits in each square's window, (1, 1, rows, columns) each."""
        if self.device.type != "cpu":  # the whole is little work there, and many windows many small layers
            (logits,) = self.mask_network(_batch(squares))
            return [
                logits[number, None, :, window.top : window.bottom, window.left : window.right]
                for number, window in enumerate(windows)
            ]
        return [
            inside
            for chunk, first in self._chunks(squares)
            for inside in self.mask_network.windows(chunk, windows[first : first + CHUNK])
        ]

    def _run(self, network: TfliteNetwork, squares: Sequence[Tensor]) -> Tensor:
        whole: Tensor
        if self.device.type != "cpu":
            (whole,) = network(_batch(squares))
            return whole
        return torch.cat([network(chunk)[0] for chunk, _ in self._chunks(squares)])[: len(squares)]

    def _chunks(self, squares: Sequence[Tensor]) -> Iterator[tuple[Tensor, int]]:
        """CHUNK squares each and the number of the first. The last one is filled with zeros: a pass over
        fewer may round otherwise, and a mask should not depend on its neighbours."""
        for first in range(0, len(squares), CHUNK):
            part = list(squares[first : first + CHUNK])
            yield _batch(part + [torch.zeros_like(part[0])] * (CHUNK - len(part))), first


def _batch(squares: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(squares)).contiguous(memory_format=torch.channels_last)


class _Place:
    """Where the crop lies in its square, in the square's pixels."""

    def __init__(self, height: int, width: int, side: int) -> None:
        scale = side / max(height * (1 + 2 * MARGIN), width)
        self.height, self.width = max(1, round(height * scale)), max(1, round(width * scale))
        self.top, self.left = (side - self.height) // 2, (side - self.width) // 2

    @property
    def window(self) -> Window:
        return Window(self.top, self.top + self.height, self.left, self.left + self.width)


def _square(image: Tensor, side: int) -> tuple[Tensor, _Place]:
    """The image in the middle of a (3, side, side) square, in 0..1, its outermost pixels repeated."""
    place = _Place(image.shape[1], image.shape[2], side)
    size = (place.height, place.width)
    small = interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True).clamp(0, 1)
    right, bottom = side - place.left - place.width, side - place.top - place.height
    return pad(small, (place.left, right, place.top, bottom), mode="replicate")[0], place


def load_pose(weights: Path, device: torch.device, side: int = MASK_SIDE) -> PoseSegmenter:
    """The network in a TFLite file. Raises UserError: a graph that cannot be computed, or another side."""
    return PoseSegmenter(
        read_graph(read_file(weights, PICTURE_BYTES), str(weights)), device, str(weights), side
    )
