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
from maskreid_dist.training.facts import flat
from maskreid_dist.training.meeting import Meeting

# What may differ between a checkpoint and the recipe that continues from it.
MAY_CHANGE_ON_RESUME = {"name", "data.shards", "data.workers", "data.on_bad_mask"}
MAY_CHANGE_ON_RESUME |= {f"data.{key}" for key in ("cache", "cache_gb", "prefetch", "bad_samples")}
# The stage has a check of its own.
MAY_CHANGE_ON_RESUME |= {"engine.collective_timeout_s", "engine.zero_stage"}
# May differ too, and makes another training of it: kept in the manifests and events.jsonl.
RECORDED = {"optimizer.lr", "optimizer.steps"}


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


def changed_keys(checkpoint: Checkpoint, config: Config) -> dict[str, tuple[Any, Any]]:
    """What the recipe says otherwise than the checkpoint's: key -> (before, now)."""
    saved, wanted = flat(checkpoint.config.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    return {key: (saved[key], wanted[key]) for key in saved if saved[key] != wanted[key]}


def changes_of(checkpoint: Checkpoint | None, config: Config) -> list[dict[str, Any]]:
    """The changes of a checkpoint's keys, and those that continue it: for the manifests to come."""
    if checkpoint is None:
        return []
    return checkpoint.changes + [
        {"step": checkpoint.step, "key": key, "from": before, "to": now}
        for key, (before, now) in changed_keys(checkpoint, config).items()
        if key in RECORDED
    ]


def check_continues(checkpoint: Checkpoint, config: Config, shards_fingerprint: str, world_size: int) -> None:
    """Raise CheckpointError naming every difference that would not continue from the checkpoint."""
    refused = []
    for key, (before, now) in changed_keys(checkpoint, config).items():
        if key == "optimizer.steps" and now < before:
            refused.append(f"{key} = {before!r}, the recipe says {now!r} (more are allowed)")
        elif not (key in MAY_CHANGE_ON_RESUME or key in RECORDED or key.startswith("run.")):
            refused.append(f"{key} = {before!r}, the recipe says {now!r}")
    if refused:
        raise CheckpointError(
            f"{checkpoint.path}: was trained with {'; '.join(refused)}; "
            "use the old values, or another run name to start afresh"
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
