"""Continuing a run from its newest usable checkpoint."""

from pathlib import Path
from typing import Any

from maskreid_dist.config import Config
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import (
    Checkpoint,
    described_checkpoint,
    find_manifest,
    finished_checkpoints,
)
from maskreid_dist.run_directory import CHECKPOINTS
from maskreid_dist.training.meeting import Meeting

# What may differ between a checkpoint and the recipe that continues from it.
MAY_CHANGE_ON_RESUME = {"name", "run", "data.shards", "data.workers", "data.on_bad_mask"}
MAY_CHANGE_ON_RESUME |= {f"data.{key}" for key in ("cache", "cache_gb", "prefetch", "bad_samples")}
# The stage has a check of its own.
MAY_CHANGE_ON_RESUME |= {"engine.collective_timeout_s", "engine.zero_stage"}


def checkpoint_to_continue(
    config: Config, run: Path, fingerprint: str, meeting: Meeting
) -> Checkpoint | None:
    """The newest usable checkpoint, found by rank 0 and checked against the recipe and the
    split's fingerprint. All ranks take part."""
    found: dict[str, Any] | None = None
    problem = None
    if meeting.is_first and finished_checkpoints(run / CHECKPOINTS):
        try:
            path, manifest, passed_over = find_manifest(run)
            for line in passed_over:
                print(f"warning: passed over {line}", flush=True)
            found = {"name": path.name, "manifest": manifest}
        except CheckpointError as error:
            problem = str(error)
    meeting.refuse(problem)
    found = meeting.from_first(found)
    if found is None:
        return None
    checkpoint = described_checkpoint(run / CHECKPOINTS / found["name"], found["manifest"])
    check_continues(checkpoint, config, fingerprint, meeting.place.size)
    if meeting.is_first:
        print(f"continuing from {checkpoint.path}", flush=True)
    return checkpoint


def check_continues(checkpoint: Checkpoint, config: Config, shards_fingerprint: str, world_size: int) -> None:
    """Raise CheckpointError, naming the first key that differs, if the recipe
    cannot continue from the checkpoint."""
    saved, wanted = checkpoint.config.model_dump(), config.model_dump()
    for section in sorted(set(saved) - MAY_CHANGE_ON_RESUME):
        pairs = [(section, saved[section], wanted[section])]
        if isinstance(saved[section], dict):
            pairs = [(f"{section}.{k}", v, wanted[section][k]) for k, v in saved[section].items()]
        for key, before, now in pairs:
            if before != now and key not in MAY_CHANGE_ON_RESUME:
                raise CheckpointError(
                    f"{checkpoint.path}: was trained with {key} = {before!r}, the recipe says {now!r}; "
                    "use the old value, or another run name to start afresh"
                )
    if checkpoint.shards_fingerprint != shards_fingerprint:
        raise CheckpointError(
            f"{checkpoint.path}: was trained on other shards than {config.data.shards}; use another run name to start afresh"
        )
    if config.batch.sampling == "paper" and checkpoint.world_size != world_size:
        raise CheckpointError(
            f"{checkpoint.path}: saved by {checkpoint.world_size} ranks, now there are {world_size}: the paper's batch is one "
            "a rank, so continue with as many"
        )
    stages = {checkpoint.config.engine.zero_stage, config.engine.zero_stage}
    if stages != {0} and (len(stages) > 1 or checkpoint.world_size != world_size):
        raise CheckpointError(
            f"{checkpoint.path}: saved by {checkpoint.world_size} ranks with ZeRO stage "
            f"{checkpoint.config.engine.zero_stage}; continue with the same, the optimizer's state is split that way"
        )


def load_engine(engine: Any, checkpoint: Checkpoint) -> None:
    """Load a verified checkpoint into the engine. All ranks take part."""
    loaded, _ = engine.load_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
    if loaded is None:
        raise CheckpointError(
            f"{checkpoint.path}: DeepSpeed found nothing to load there; use another checkpoint"
        )
