"""The training objective of a recipe, on one global batch spread over the ranks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maskreid_dist.config import LossConfig
from maskreid_dist.model import Output
from maskreid_dist.training.memory import Rows, candidates
from maskreid_kernels import LOSSES, constants, ranking_loss_with_statistics, softmax_loss


def objective(
    output: Output,
    labels_B: Tensor,
    config: LossConfig,
    group: dist.ProcessGroup | None,
    past: Sequence[Rows] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (0-d, the global mean on every rank) and what to log beside it (0-d tensors).

    labels_B: int64 class numbers 0 ... C-1. past: this rank's rows of the cross-batch memory; None: it has no
    part. All ranks of `group` take part; its gradient convention is that of maskreid_kernels.ranks:
    data-parallel averaging gives the gradient of one process on the whole batch.
    """
    if config.name == "softmax":
        assert output.logits_BC is not None
        smoothing = config.label_smoothing
        return softmax_loss(
            output.logits_BC, labels_B, label_smoothing=smoothing, group=group, backend=config.backend
        ), {}
    loss, scalars = pair_loss(output.embedding_BD, labels_B, config, group)
    if config.memory:
        scalars["memory_loss"] = torch.zeros_like(loss.detach())
    if past is not None:
        memory = candidates(output.embedding_BD, labels_B, past)
        of_memory, _ = pair_loss(output.embedding_BD, labels_B, config, group, memory)
        scalars["memory_loss"] = of_memory.detach()
        loss = loss + config.memory_weight * of_memory
    if config.identity_weight:
        assert output.logits_BC is not None
        smoothing = config.label_smoothing
        identity = softmax_loss(output.logits_BC, labels_B, label_smoothing=smoothing, group=group)
        scalars["identity_loss"] = identity.detach()
        loss = loss + config.identity_weight * identity
    return loss, scalars


def pair_loss(
    rows_BD: Tensor,
    labels_B: Tensor,
    config: LossConfig,
    group: dist.ProcessGroup | None,
    memory: Rows | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses that compare embeddings; arguments and results as in `objective`. memory: the only
    candidates; None: the batch itself."""
    call: dict[str, Any] = {
        "embeddings": rows_BD,
        "labels": labels_B,
        "group": group,
        "backend": config.backend,
        "precision": config.precision,
        "reference": memory,
    }
    # A constant that no recipe names (normalize) keeps the loss's own default.
    call |= {name: getattr(config, name) for name in constants(config.name) if hasattr(config, name)}
    if config.name != "ranking":
        return LOSSES[config.name](**call), {}
    loss, statistics = ranking_loss_with_statistics(**call)
    return loss, {
        "loss_above_floor": loss.detach() - statistics.floor,
        "active_negative_fraction": statistics.active_negative_fraction,
    }
