"""The pose network's mask as ONNX, for `maskreid page`."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskreid_dist.model.export import onnx_bytes
from maskreid_dist.segmentation.pose import MARGIN, MASK_OUTPUT, MASK_SIDE
from maskreid_dist.segmentation.pose_weights import LICENCE, REQUIREMENT, find_pose_weights
from maskreid_dist.segmentation.tflite import read_graph
from maskreid_dist.segmentation.tflite_network import TfliteNetwork
from maskreid_shards.opening import PICTURE_BYTES, read_file


class PoseExport(NamedTuple):
    """onnx: float32 (1, 3, side, side) in 0..1 to the probability of person, (1, 1, side, side)."""

    onnx: bytes
    side: int
    margin: float
    licence: str


class _Mask(nn.Module):
    def __init__(self, network: TfliteNetwork) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, image: Tensor) -> Tensor:
        mask: Tensor = self.network(image)[0].sigmoid()
        return mask


def exported_pose(weights: Path | None) -> PoseExport:
    """Raises UserError: no weights, no exporter, or a graph that cannot be computed."""
    path = find_pose_weights(weights)
    network = TfliteNetwork(read_graph(read_file(path, PICTURE_BYTES), str(path)), [MASK_OUTPUT], str(path))
    onnx = onnx_bytes(_Mask(network), (torch.zeros(1, 3, MASK_SIDE, MASK_SIDE),), ["image"], "mask")
    said = f"\nThe network of masks (data/network.js) is that of {REQUIREMENT}, {LICENCE}.\n"
    return PoseExport(onnx, MASK_SIDE, MARGIN, said)
