"""What the mask of a crop takes of a core: the whole of it, its network alone, and the core at its best."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maskreid_dist.errors import UserError
from maskreid_dist.segmentation.masks import write_masks
from maskreid_dist.segmentation.networks import (
    SegmentationModel,
    default_height,
    find_weights,
    load_segmenter,
)
from maskreid_dist.segmentation.pose import PoseSegmenter
from maskreid_dist.segmentation.tflite_layers import Convolution
from maskreid_kernels.bench.figures import Promise
from maskreid_shards import Source, scan_market1501

SIDE = 768  # of the matrices whose product says what the core can


@dataclass(frozen=True)
class MaskSpeed:
    """CPU time of one thread, medians over `rounds` and the least; a crop's whole mask (read, computed,
    written) and the network on decoded pixels, ms. `gflop`: multiplications and additions of a crop's
    convolutions, 1e9, None where they are not counted. `product_gflops`: 1e9 of them per second in a product
    of two matrices, in the same rounds."""

    crops: int
    rounds: int
    whole_ms: float
    whole_least_ms: float
    network_ms: float
    network_least_ms: float
    gflop: float | None
    product_gflops: float
    product_most_gflops: float

    def lines(self) -> list[str]:
        found = [
            f"a crop: {self.whole_ms:.2f} ms of a core ({self.whole_least_ms:.2f} at the least), of them the "
            f"network {self.network_ms:.2f} ({self.network_least_ms:.2f})"
        ]
        if self.gflop is not None:
            reached = self.gflop / self.network_ms * 1e3
            found.append(
                f"its convolutions: {self.gflop:.3f} GFLOP, {reached:.0f} GFLOP/s; "
                f"a product of matrices: {self.product_gflops:.0f} ({self.product_most_gflops:.0f} at the "
                f"most), with which they would take {self.gflop / self.product_gflops * 1e3:.2f} ms"
            )
        return found

    def promise(self) -> Promise:
        return Promise("crops/s per core", 1e3 / self.whole_ms, 100, True)


def measure_speed(
    source: Path, crops: int, rounds: int, *, model: SegmentationModel = "pose", weights: Path | None = None
) -> MaskSpeed:
    """On the first images of `source` (Market-1501's layout), on the CPU.

    The three take turns, so that what else the machine does is in all of them. Raises UserError: fewer images
    than `crops`; see `find_weights`, `load_segmenter`.
    """
    sources = list(islice(scan_market1501(source).sources(), crops))
    if len(sources) < crops:
        raise UserError(f"{source}: {len(sources)} images; measure at most so many")
    segmenter = load_segmenter(
        model, find_weights(model, weights), torch.device("cpu"), input_height=default_height(model)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pixels = [_pixels(one) for one in sources]
        gflop = _gflop(segmenter, pixels) if isinstance(segmenter, PoseSegmenter) else None
        matrix = torch.rand(SIDE, SIDE)
        whole, network, product = [], [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="maskreid-bench-") as folder:
                whole.append(_seconds(lambda: write_masks(sources, Path(folder), segmenter)) / crops)
            network.append(_seconds(lambda: _network(segmenter, pixels)) / crops)
            product.append(_seconds(lambda: matrix @ matrix))
    finally:
        torch.set_num_threads(threads)
    gflops = 2 * SIDE**3 / 1e9 / np.array(product)
    return MaskSpeed(
        crops,
        rounds,
        1e3 * float(np.median(whole)),
        1e3 * min(whole),
        1e3 * float(np.median(network)),
        1e3 * min(network),
        gflop,
        float(np.median(gflops)),
        float(gflops.max()),
    )


def _pixels(source: Source) -> Tensor:
    """uint8 (3, H, W)."""
    with Image.open(source.path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _network(segmenter: Callable[[Sequence[Tensor]], Sequence[Tensor]], pixels: Sequence[Tensor]) -> None:
    for first in range(0, len(pixels), 16):
        segmenter(pixels[first : first + 16])


def _seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _gflop(segmenter: PoseSegmenter, pixels: Sequence[Tensor]) -> float:
    """Of a crop's convolutions, 1e9: counted while they are computed."""
    total = 0

    def count(layer: nn.Module, given: object, result: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, Convolution)
        filters = layer.weight if layer.summed else layer.weight[0]
        total += 2 * result.numel() * filters.numel()

    layers = [layer for layer in segmenter.mask_network.steps if isinstance(layer, Convolution)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    segmenter(pixels)
    for hook in hooks:
        hook.remove()
    return total / len(pixels) / 1e9
