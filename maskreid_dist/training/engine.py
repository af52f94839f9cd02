"""The DeepSpeed engine of a run: its JSON, its optimizer, its learning rate."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskreid_dist.config import Config, EngineConfig, OptimizerConfig
from maskreid_dist.run_directory import DEEPSPEED_JSON
from maskreid_shards.atomic import write_atomically


def deepspeed_config(config: Config, rows_per_rank: int, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration, with every key that matters: it ignores unknown ones and fills in the rest.

    rows_per_rank: images of one batch on one rank (the largest, where ranks
    differ; only DeepSpeed's log reads it).
    """
    return {
        "train_micro_batch_size_per_gpu": rows_per_rank,
        "gradient_accumulation_steps": 1,
        "train_batch_size": rows_per_rank * world_size,
        "gradient_clipping": config.optimizer.gradient_clipping,  # unset would mean 1.0
        "prescale_gradients": False,
        "zero_optimization": zero_settings(config.engine),
        "zero_allow_untested_optimizer": True,  # the optimizers are torch's own
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},  # would cast the weights and not the buffers: batch normalisation fails
        "torch_autocast": {"enabled": config.engine.autocast == "bfloat16", "dtype": "bfloat16"},
        "checkpoint": {
            "tag_validation": "Fail",
            # local rank 0 of each machine writes the model beside its ranks' pieces, not rank 0 alone
            "use_node_local_storage": config.run.local_checkpoints,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def zero_settings(config: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization`."""
    settings: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload != "none":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "all":
        settings["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return settings


def full_state(module: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """A network's parameters and buffers on the host; nothing where `keep` is false.

    Under ZeRO 3 each module's parameters are gathered in turn: all ranks take part.
    """
    import deepspeed

    state = {}
    for name, part in module.named_modules():
        with deepspeed.zero.GatheredParameters(list(part.parameters(recurse=False))):
            own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
            for own_name, tensor in own if keep else []:
                # A copy: what was gathered is given back.
                host = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                state[f"{name}.{own_name}" if name else own_name] = host
    return state


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD or AdamW; biases and normalisation weights (all parameters of one dimension) do not decay (DGD)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rate of global step `step` (0-based): a pure function, so that resuming needs no scheduler state."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(1.0, step / config.steps)
    end = config.final_lr_factor
    if config.schedule == "constant":
        factor = 1.0
    elif config.schedule == "cosine":
        factor = end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2
    else:
        if config.schedule == "staircase":
            progress = min(1.0, math.floor(progress * config.stairs) / max(1, config.stairs - 1))
        factor = 1 - (1 - end) * progress
    return config.lr * warm * factor


def start_engine(
    network: nn.Module, config: Config, rows_per_rank: int, world_size: int, run: Path | None
) -> Any:
    """`deepspeed.initialize` for this recipe; rank 0 passes `run` to keep the
    JSON there. All ranks take part."""
    import deepspeed

    settings = deepspeed_config(config, rows_per_rank, world_size)
    if run is not None:
        write_atomically(run / DEEPSPEED_JSON, (json.dumps(settings, indent=2) + "\n").encode())
    if config.engine.sync_batchnorm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = make_optimizer(network, config.optimizer)
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    return engine
