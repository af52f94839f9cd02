"""The size of a training on any number of ranks, by arithmetic: steps, bytes, FLOPs, memory, predicted time.

Counted: the plan of the batches, the network's FLOPs and saved tensors, parameters. Assumed: `Rates`.
Not counted: allocator and library overhead, workspaces of convolutions, NCCL's buffers, DeepSpeed's buckets,
latency, and of engine.offload the copies to and from the host and the optimizer's step there.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskreid_dist.config import Config
from maskreid_dist.data.batches import AnyPlan, recipe_plan
from maskreid_dist.errors import RecipeError
from maskreid_dist.planning.network_cost import NetworkCost, network_cost
from maskreid_shards import Split, StreamPlan

FLOAT = 4  # bytes; weights, gradients and optimizer state are float32
LABEL = 8
# Matrix products of own rows by all candidates: forward, and in the backward the same again and the
# gradient's. Batch-hard's backward takes a pair of rows an anchor.
PRODUCTS = {"batch_hard": 1, "softmax": 0}
ALL_PRODUCTS = 3
STATE = {"sgd": 1, "adamw": 2}  # numbers a parameter, beside itself
SHARED_FROM_STAGE = {"optimizer": 1, "gradients": 2, "weights": 3}


@dataclass(frozen=True)
class Rates:
    """What a prediction takes for granted, of each rank."""

    tflops: float = 10.0  # reached in the network and the loss, not the peak
    network_gb_s: float = 10.0  # of a collective, in and out each
    read_mb_s: float = 200.0
    decode_pairs_s: float = 1000.0  # of a data worker: decoding and augmenting
    memory_gb: float = 80.0


@dataclass(frozen=True)
class Pairs:
    """How many bytes a pair of image and mask is in the shards."""

    mean_bytes: float

    @classmethod
    def of(cls, split: Split) -> "Pairs":
        index = split.index
        return cls(float(index["image_length"].mean() + index["mask_length"].mean()))


def run_plan(config: Config, split: Split, world: int, rates: Rates) -> dict[str, Any]:
    """Figures by group, in the units that their names end with; a rank's unless it says otherwise.

    Raises UserError and maskreid_shards.ShardError: the recipe cannot train on these shards with so many
    ranks, or does not fit their memory.
    """
    wanted = config.engine.world
    if wanted is not None and wanted != world:
        raise RecipeError(f"the recipe expects engine.world = {wanted}, and --world is {world}; use the same")
    plan = recipe_plan(split, config, world)
    summary = plan.summary()
    classes = int((split.identities > 0).sum()) if config.loss.classifies else 0
    cost = network_cost(config, classes)
    rows = summary.batch // world
    steps = config.optimizer.steps
    read = _read_per_step(split, plan, rows)
    batches = {
        "steps": steps,
        "steps_per_epoch": summary.steps_per_epoch,
        "epochs": round(steps / summary.steps_per_epoch, 2),
        "images_per_step": summary.batch,
        "images_per_step_and_rank": rows,
        "identities_per_step": summary.batch_identities,
        "identities_per_epoch": summary.taking_part,
        "identities_dropped_per_pass": summary.dropped_identities,
        "read_per_step_mb": read / 1e6,
        "read_per_epoch_gb": read * summary.steps_per_epoch / 1e9,
    }
    traffic = _traffic(config, cost, summary.batch, world)
    flops = _flops(config, cost, summary.batch, world)
    memory = _memory(config, cost, summary.batch, world)
    if memory["total_gb"] > rates.memory_gb:
        raise RecipeError(
            f"a rank needs about {memory['total_gb']:.1f} GB ({memory['activations_gb']:.1f} GB of them "
            f"activations), and has {rates.memory_gb:g} (--memory-gb); use more ranks, smaller batches or "
            "batch.micro_images"
        )
    time = _time(config, batches, traffic, flops, rates)
    return {
        "recipe": config.name,
        "world": world,
        "batches": batches,
        "traffic": traffic,
        "flops": flops,
        "memory": memory,
        "checkpoint": _checkpoint(config, cost, summary.batch, world),
        "time": time,
        "assumed": asdict(rates),
    }


def _read_per_step(split: Split, plan: AnyPlan, rows: int) -> float:
    """Bytes that a rank reads in a step: of an index the pairs that it draws; of a stream its share of a
    pass, whole shards however few of their images are drawn."""
    if not isinstance(plan, StreamPlan):
        return rows * Pairs.of(split).mean_bytes
    shards = split.entry.shards
    used = np.unique(plan.shard_of[plan.batches.eligible])
    mean_bytes: float = sum(shards[number].bytes for number in used.tolist()) / len(used)
    shards_of_a_rank: float = plan.reader_shards(0, 0).size / plan.world
    return mean_bytes * shards_of_a_rank / plan.steps_per_pass


def _candidates(config: Config, batch: int) -> int:
    """Rows that an own row is compared with: the batch, and with loss.memory once more with the past ones."""
    return batch + (batch * (1 + config.loss.memory) if config.loss.memory else 0)


def _traffic(config: Config, cost: NetworkCost, batch: int, world: int) -> dict[str, float]:
    """Received by a rank in a step. Not counted: a few numbers a row that some losses exchange."""
    row_bytes = FLOAT * config.model.embedding_dim + LABEL if config.loss.name != "softmax" else 0
    others = (world - 1) / world
    passes = 3 if config.engine.zero_stage >= 3 else 2  # of a ring all-reduce; ZeRO 3 gathers weights twice
    return {
        "gathered_mb": _candidates(config, batch) * row_bytes * others / 1e6,
        "gradients_mb": passes * cost.parameters * FLOAT * others / 1e6,
    }


def _flops(config: Config, cost: NetworkCost, batch: int, world: int) -> dict[str, float]:
    """Of a rank in a step. The second forward pass of batch.micro_images is in the network's."""
    rows = batch // world
    forwards = 2 if config.batch.micro_images else 1
    products = PRODUCTS.get(config.loss.name, ALL_PRODUCTS)
    pairs = rows * _candidates(config, batch)
    return {
        "network_tflop": rows * (forwards * cost.forward_flops + cost.backward_flops) / 1e12,
        "loss_tflop": products * 2 * pairs * config.model.embedding_dim / 1e12,
    }


def _memory(config: Config, cost: NetworkCost, batch: int, world: int) -> dict[str, float]:
    """Of a rank's GPU, and what engine.offload keeps in the host's memory for it (in no total). Activations
    under bfloat16 are taken as half of float32's."""
    rows = batch // world
    at_once = rows
    if config.batch.micro_images:
        at_once = -(-rows // max(1, -(-rows // config.batch.micro_images)))
    half = 0.5 if config.engine.autocast == "bfloat16" else 1.0
    dim, stage = config.model.embedding_dim, config.engine.zero_stage
    weights = cost.parameters * FLOAT

    def share(what: str) -> float:
        return 1 / world if stage >= SHARED_FROM_STAGE[what] else 1.0

    # ZeRO keeps a copy of its part of the weights beside the optimizer's state.
    state = STATE[config.optimizer.name] + (1 if stage else 0)
    loss_bytes = _candidates(config, batch) * (FLOAT * dim + LABEL) + 2 * rows * FLOAT * dim
    if config.loss.backend in ("dense", "reference"):
        loss_bytes += 4 * rows * _candidates(config, batch) * FLOAT  # S, masks, its gradient
    shares = {
        "weights_gb": weights * share("weights"),
        "gradients_gb": weights * share("gradients"),
        "optimizer_gb": weights * state * share("optimizer"),
    }
    host = dict.fromkeys(shares, 0.0)
    if config.engine.offload != "none":
        # The host's optimizer steps with its part of the gradients; ZeRO 1 leaves all of them on the GPU too.
        host["optimizer_gb"], shares["optimizer_gb"] = shares["optimizer_gb"], 0.0
        host["gradients_gb"] = weights / world
        shares["gradients_gb"] *= stage < SHARED_FROM_STAGE["gradients"]
    if config.engine.offload == "all":
        host["weights_gb"], shares["weights_gb"] = shares["weights_gb"], 0.0
    parts = {
        **shares,
        # Of optimizer.ema, whole on every rank, with the running statistics.
        "average_gb": (cost.parameters + cost.buffers) * FLOAT if config.optimizer.ema else 0,
        "activations_gb": at_once * cost.saved_bytes * half,
        "images_gb": rows * 4 * config.data.height * config.data.width,
        "loss_gb": loss_bytes if config.loss.name != "softmax" else 0,
    }
    gigabytes = {name: size / 1e9 for name, size in parts.items()}
    return {**gigabytes, "total_gb": sum(gigabytes.values()), "host_gb": sum(host.values()) / 1e9}


def _checkpoint(config: Config, cost: NetworkCost, batch: int, world: int) -> dict[str, float]:
    """On disk, all ranks' files: weights for inference, DeepSpeed's of the model, the optimizer's state. With
    optimizer.ema the average is the weights for inference, so it adds nothing."""
    model = (cost.parameters + cost.buffers) * FLOAT
    state = STATE[config.optimizer.name] + (1 if config.engine.zero_stage else 0)
    memory = config.loss.memory * batch * (FLOAT * config.model.embedding_dim + LABEL)
    size = 2 * model + cost.parameters * FLOAT * state + memory
    kept = config.run.keep_checkpoints + (1 if config.run.evaluate_every else 0)
    return {"size_mb": size / 1e6, "kept": kept, "kept_gb": kept * size / 1e9}


def _time(
    config: Config,
    batches: dict[str, Any],
    traffic: dict[str, float],
    flops: dict[str, float],
    rates: Rates,
) -> dict[str, Any]:
    """Of a step: computing and then sending, as if neither hid the other; reading and decoding go on beside
    them, without data workers before them. Evaluations and saves are in none of it."""
    rows = batches["images_per_step_and_rank"]
    seconds = {
        "network": flops["network_tflop"] / rates.tflops,
        "loss": flops["loss_tflop"] / rates.tflops,
        "gather": traffic["gathered_mb"] / 1e3 / rates.network_gb_s,
        "gradients": traffic["gradients_mb"] / 1e3 / rates.network_gb_s,
    }
    data_s = max(
        batches["read_per_step_mb"] / rates.read_mb_s,
        rows / (max(1, config.data.workers) * rates.decode_pairs_s),
    )
    computed_s = sum(seconds.values())
    step_s = max(computed_s, data_s) if config.data.workers else computed_s + data_s
    return {
        **{f"{name}_ms": 1000 * value for name, value in seconds.items()},
        "data_ms": 1000 * data_s,
        "step_ms": 1000 * step_s,
        "bound_by": "data" if data_s > computed_s else max(seconds, key=lambda name: seconds[name]),
        "images_per_second": batches["images_per_step"] / step_s,
        "hours": batches["steps"] * step_s / 3600,
    }
