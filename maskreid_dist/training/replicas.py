"""Whether the ranks' copies of the weights are still one network, and finite: looked at before a save
commits."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from maskreid_dist.errors import TrainingError
from maskreid_dist.training.world import World

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def weights_digest(module: nn.Module) -> Tensor:
    """0-d int64, on the weights' device: sums of their bits modulo 2**64, which no order of adding changes.

    A tensor's sum counts with an odd factor of its own: two that changed places are noticed. 0 under ZeRO 3:
    each rank holds another part, and there are no copies to compare.
    """
    if any(hasattr(p, "ds_tensor") for p in module.parameters()):
        return torch.zeros((), dtype=torch.int64, device=next(module.parameters()).device)
    sums = [p.detach().view(BITS[p.element_size()]).sum(dtype=torch.int64) for p in module.parameters()]
    total = torch.stack(sums)
    return (total * torch.arange(1, 2 * len(sums), 2, device=total.device)).sum()


def largest_value(module: nn.Module) -> Tensor:
    """0-d float: the largest magnitude in the weights and floating-point buffers, NaN if any is NaN. One
    fused norm. Under ZeRO 3 of this rank's parts of the weights."""
    weights = [own_part(p) for p in module.parameters()]
    tensors = [*weights, *(b for b in module.buffers() if b.is_floating_point())]
    return get_total_norm([t.detach() for t in tensors if t.numel()], float("inf"))


def own_part(parameter: nn.Parameter) -> Tensor:
    """A parameter, or under ZeRO 3 what this rank holds of it, without the padding, which may be anything."""
    part: Tensor | None = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter
    left = int(parameter.ds_numel) - dist.get_rank() * part.numel()  # type: ignore[attr-defined]
    return part[: max(0, left)]


@dataclass
class Replicas:
    """Compares the ranks' weights; `alike_after` is the last step after which they were equal."""

    alike_after: int

    def check(self, module: nn.Module, world: World, step: int) -> list[int]:
        """The ranks whose weights or buffers are not finite after `step` steps. All ranks take part: one
        small all-gather, read on the host.

        Raises TrainingError on every rank: their weights differ.
        """
        finite = largest_value(module).isfinite().to(torch.int64)
        own = torch.stack([weights_digest(module), finite]).cpu()
        table_W2 = own.new_empty((world.size, 2))
        dist.all_gather_into_tensor(table_W2, own[None], group=world.control)
        broken = [rank for rank, (_, fine) in enumerate(table_W2.tolist()) if not fine]
        if broken:  # their bits say nothing
            return broken
        ranks: dict[int, list[int]] = {}
        for rank, (digest, _) in enumerate(table_W2.tolist()):
            ranks.setdefault(digest, []).append(rank)
        if len(ranks) > 1:
            sums = "; ".join(
                f"{value % 2**64:016x} on {world.meeting.who(own)}" for value, own in ranks.items()
            )
            raise TrainingError(
                f"the ranks hold different weights after step {step} (the same after step "
                f"{self.alike_after}): bit sums {sums}; nothing was saved since, --resume continues from the "
                "last checkpoint"
            )
        self.alike_after = step
        return []
