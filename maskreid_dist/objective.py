"""The training objective of a recipe, on one global batch spread over the ranks."""

import torch.distributed as dist
from torch import Tensor

from maskreid_dist.config import LossConfig
from maskreid_dist.model import Output
from maskreid_kernels import batch_hard_loss, ranking_loss_with_statistics, softmax_loss


def objective(
    output: Output, labels_B: Tensor, config: LossConfig, group: dist.ProcessGroup | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (0-d, the global mean on every rank) and what to log beside it (0-d tensors, no host sync).

    labels_B: int64 class numbers 0 ... C-1. All ranks of `group` take part; its gradient convention is that of
    maskreid_kernels.ranks: data-parallel averaging gives the gradient of one process on the whole batch.
    """
    scalars: dict[str, Tensor] = {}
    if config.name == "softmax":
        assert output.logits_BC is not None
        return softmax_loss(output.logits_BC, labels_B, group=group, backend=config.backend), scalars
    if config.name == "ranking":
        assert config.margin != "soft"
        loss, statistics = ranking_loss_with_statistics(
            output.embedding_BD,
            labels_B,
            margin=config.margin,
            pull=config.pull,
            negatives=config.negatives,
            group=group,
            backend=config.backend,
        )
        scalars["loss_above_floor"] = loss.detach() - statistics.floor
        scalars["active_negative_fraction"] = statistics.active_negative_fraction
    else:
        loss = batch_hard_loss(
            output.embedding_BD,
            labels_B,
            margin=config.margin,
            distance=config.distance,
            group=group,
            backend=config.backend,
        )
    if config.identity_weight:
        assert output.logits_BC is not None
        identity = softmax_loss(output.logits_BC, labels_B, group=group, backend=config.backend)
        scalars["identity_loss"] = identity.detach()
        loss = loss + config.identity_weight * identity
    return loss, scalars
