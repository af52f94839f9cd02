"""IBN-a: instance and batch normalisation side by side in a ResNet's first stages (Pan et al., ECCV 2018,
arXiv 1807.09441), which makes less of what differs from camera to camera."""

import torch
from torch import Tensor, nn

STAGES = ("layer1", "layer2", "layer3")  # not the last, which tells the persons apart


class InstanceBatchNorm(nn.Module):
    """(B, C, H, W): the first half of the channels by their image's statistics, the others by the batch's.

    The parameters' names are those of the published networks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.by_image = channels // 2
        self.IN = nn.InstanceNorm2d(self.by_image, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.by_image)

    def forward(self, x: Tensor) -> Tensor:
        image, batch = x.split([self.by_image, x.shape[1] - self.by_image], dim=1)
        return torch.cat([self.IN(image), self.BN(batch)], dim=1)


def mix_norms(net: nn.Module) -> int:
    """Put one in place of the first normalisation of each block of a timm ResNet; how many there are."""
    mixed = 0
    for stage in STAGES:
        for block in getattr(net, stage, nn.Identity()).modules():
            norm = getattr(block, "bn1", None)
            if type(norm) is nn.BatchNorm2d:
                block.bn1 = InstanceBatchNorm(norm.num_features)
                mixed += 1
    return mixed
