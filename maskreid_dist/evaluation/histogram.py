"""Colour histograms as a re-ID baseline that needs no training: what a network has to beat.

Joint HSV histograms of 16 x 4 x 4 bins in horizontal stripes, each normalised to sum 1, square
roots taken (the cosine of two such vectors is then the mean Bhattacharyya coefficient of their
stripes). With a mask only pixels inside it count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BINS = (16, 4, 4)  # hue, saturation, value


@dataclass(frozen=True)
class HistogramBaseline:
    """A named variant of `histogram_features`."""

    name: str
    stripes: int
    masked: bool


HISTOGRAM_BASELINES = (
    HistogramBaseline("histogram, whole image", 1, False),
    HistogramBaseline("histogram, 6 stripes", 6, False),
    HistogramBaseline("histogram, 6 stripes, mask", 6, True),
)


def histogram_features(
    images: Sequence[Image.Image], masks: Sequence[Image.Image] | None, *, stripes: int
) -> NDArray[np.float32]:
    """(N, stripes * 256) float32 features of RGB images, of unit L2 norm.

    masks: 8-bit, 255 = person, each of its image's size; None counts every pixel. A
    stripe without a pixel that counts is 0.
    Raises ValueError when there is not one mask an image or a mask has another size.
    """
    if masks is not None and len(masks) != len(images):
        raise ValueError(f"{len(images)} images and {len(masks)} masks: give one mask an image")
    features = np.zeros((len(images), stripes, int(np.prod(BINS))), np.float32)
    for number, image in enumerate(images):
        hsv = np.asarray(image.convert("HSV"), np.int64)
        counts = np.ones(hsv.shape[:2], bool)
        if masks is not None:
            counts = np.asarray(masks[number].convert("L")) > 127
            if counts.shape != hsv.shape[:2]:
                raise ValueError(
                    f"image {number} is {image.size}, its mask {masks[number].size}: give one size"
                )
        bins = np.ravel_multi_index(tuple(hsv[..., c] * BINS[c] // 256 for c in range(3)), BINS)
        edges = np.linspace(0, len(hsv), stripes + 1).round().astype(int)
        for stripe, (top, bottom) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            inside = bins[top:bottom][counts[top:bottom]]
            features[number, stripe] = np.bincount(inside, minlength=features.shape[2]) / max(1, len(inside))
    roots = np.sqrt(features).reshape(len(images), -1)
    unit: NDArray[np.float32] = roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12)
    return unit
