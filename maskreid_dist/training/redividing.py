"""Going on from a checkpoint on another number of ranks, or at another ZeRO stage, than saved it.

Weights go into the network before DeepSpeed divides it, optimizer states into its partitions afterwards, a
parameter at a time: the same values, to the bit.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskreid_dist.config import Config, EngineConfig
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.training.engine import make_optimizer
from maskreid_dist.training.pieces import STEP, Pieces


def divides_anew(saved: EngineConfig, saved_by: int, now: EngineConfig, ranks: int) -> bool:
    """Whether the optimizer's state lies otherwise than `saved_by` ranks saved it."""
    if (saved.zero_stage, saved.offload) != (now.zero_stage, now.offload):
        return True
    return now.zero_stage > 0 and saved_by != ranks


def weights_to_divide(network: nn.Module, checkpoint: Checkpoint, config: Config) -> Pieces:
    """A verified checkpoint's pieces, and their weights in the network, which DeepSpeed has not divided yet.

    No other rank takes part. Raises CheckpointError: they are missing, or not of this network.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = make_optimizer(network, config.optimizer).param_groups
    parameters = [(names[id(p)], p.shape) for group in groups for p in group["params"]]
    pieces = Pieces(checkpoint, parameters)
    try:
        network.load_state_dict(pieces.weights())
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.path}: does not match its recipe: {first}") from None
    return pieces


def set_states(engine: Any, pieces: Pieces) -> None:
    """Give a new engine the optimizer states of the pieces. No other rank takes part.

    Of DeepSpeed's own it uses the lists of flat partitions, which are what torch's optimizer steps on: their
    states do not exist before the first step. Raises CheckpointError: the pieces do not hold them.
    """
    for name, count in pieces.counters.items():
        setattr(engine, name, count)
    if not pieces.states and pieces.step is None:
        return  # saved before any step was applied, or of an optimizer that remembers nothing
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    flat = list(parameters.values()) if stage == 0 else _partitions(optimizer, stage)
    for partition in flat:
        state: dict[str, Any] = {key: torch.zeros_like(partition) for key in pieces.states}
        if pieces.step is not None:
            state[STEP] = pieces.step.clone()
        optimizer.state[partition] = state
    if stage in (1, 2):
        optimizer._lazy_init_hp_params_optimizer_state()  # tells the parameters where their states are
    for name, parameter in parameters.items():
        for key in pieces.states:
            _set_state(optimizer, stage, parameter, key, pieces.state(name, key))


def _partitions(optimizer: Any, stage: int) -> list[Tensor]:
    """This rank's values of each group, which torch's optimizer takes for its parameters."""
    name = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    partitions: list[Tensor] = getattr(optimizer, name)
    return partitions


def _set_state(optimizer: Any, stage: int, parameter: Any, key: str, whole: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if stage == 0:
        optimizer.state[parameter][key].copy_(whole)
    elif stage < 3:
        safe_set_full_optimizer_state(parameter, whole, key)
    else:  # its setter of whole states fails where they are no whole number of shares
        own = whole.new_zeros(parameter.ds_tensor.numel())
        part = whole.reshape(-1)[dist.get_rank() * len(own) :][: len(own)]
        own[: len(part)] = part
        safe_set_local_optimizer_state(parameter, own, key)
