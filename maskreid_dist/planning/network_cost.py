"""What one image costs in the network, counted on torch's meta device: shapes only, nothing is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskreid_dist.config import Config
from maskreid_dist.model import ReIDNetwork, build_network

ROWS = 4  # that the count is taken of


@dataclass(frozen=True)
class NetworkCost:
    """`parameters` and `buffers`: numbers. FLOPs of an image (a multiply-add is two): convolutions and matrix
    products. `saved_bytes` of an image: what the forward keeps for the backward, in float32."""

    parameters: int
    buffers: int
    forward_flops: float
    backward_flops: float
    saved_bytes: float


def network_cost(config: Config, classes: int) -> NetworkCost:
    """Of the recipe's network with a classifier of `classes` identities, 0 for none."""
    with torch.device("meta"):
        network = build_network(config, classes)
    few, more = _counts(network, config, ROWS), _counts(network, config, 2 * ROWS)
    # Between the two what a batch keeps whatever its size, batch normalisation's statistics, goes out.
    forward, backward, saved = ((b - a) / ROWS for a, b in zip(few, more, strict=True))
    return NetworkCost(
        parameters=sum(p.numel() for p in network.parameters()),
        buffers=sum(b.numel() for b in network.buffers() if b.is_floating_point()),
        forward_flops=forward,
        backward_flops=backward,
        saved_bytes=saved,
    )


def _counts(network: ReIDNetwork, config: Config, rows: int) -> tuple[int, int, int]:
    """FLOPs of forward and backward, and the bytes kept between them, of a batch of `rows`."""
    shape = (config.data.height, config.data.width)
    image = torch.empty(rows, 3, *shape, dtype=torch.uint8, device="meta")
    mask = torch.empty(rows, 1, *shape, dtype=torch.uint8, device="meta")
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image, mask)
        forward = counter.get_total_flops()
        loss = output.embedding_BD.sum()
        (loss if output.logits_BC is None else loss + output.logits_BC.sum()).backward()
    return forward, counter.get_total_flops() - forward, sum(saved.values())
