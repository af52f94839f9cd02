"""Continuing a run from its newest usable checkpoint."""

from pathlib import Path
from typing import Any

from torch import nn

from maskreid_dist.config import Config, EngineConfig
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import (
    MANIFEST,
    Checkpoint,
    described_checkpoint,
    finished_checkpoints,
    read_manifest,
)
from maskreid_dist.terminal import say
from maskreid_dist.training.engine import start_engine
from maskreid_dist.training.facts import flat
from maskreid_dist.training.meeting import Meeting
from maskreid_dist.training.redividing import divides_anew, set_states, weights_to_divide
from maskreid_dist.training.run_folder import RunFolder
from maskreid_dist.training.unpickling import tensors_only
from maskreid_shards.opening import read_json
from maskreid_shards.shown import without_secrets

# What may differ between a checkpoint and the recipe that continues from it.
MAY_CHANGE_ON_RESUME = {"name", "data.shards", "data.workers", "data.on_bad_mask"}
MAY_CHANGE_ON_RESUME |= {f"data.{key}" for key in ("cache", "cache_gb", "prefetch", "bad_samples")}
MAY_CHANGE_ON_RESUME |= {"engine.activation_checkpointing"}
# How the optimizer's state is divided may change with the ranks (maskreid_dist.training.redividing).
MAY_CHANGE_ON_RESUME |= {"engine.collective_timeout_s", "engine.world", "engine.zero_stage", "engine.offload"}
# May differ too, and makes another training of it: kept in the manifests and events.jsonl.
RECORDED = {"optimizer.lr", "optimizer.steps"}


def checkpoint_to_continue(
    config: Config, folder: RunFolder, fingerprint: str, meeting: Meeting
) -> Checkpoint | None:
    """The newest checkpoint that every run directory's keeper has and can verify, checked against the recipe
    and the split's fingerprint. All ranks take part.

    Raises CheckpointError on every rank.
    """
    listed = meeting.gather(_saves(folder.checkpoints) if folder.is_keeper else {})
    keepers = sorted(set(folder.keepers))
    if not any(listed):
        return None
    passed_over: list[str] = []
    for name in sorted(set().union(*listed), reverse=True):
        if len({listed[keeper].get(name) for keeper in keepers}) > 1:
            passed_over.append(f"{name}: is not there, of the same save, on all machines")
            continue
        manifest, problem = _verified(folder, name, config.engine) if folder.is_keeper else (None, None)
        problems = meeting.lines(meeting.gather(problem))
        if not problems:
            manifest = meeting.from_first(manifest)
            assert manifest is not None
            checkpoint = described_checkpoint(folder.checkpoints / name, manifest)
            check_continues(checkpoint, config, fingerprint, meeting.place.size)
            if meeting.is_first:
                for line in passed_over:
                    say(f"warning: passed over {line}", flush=True)
                say(f"continuing from {checkpoint.path}{_divided(checkpoint, config, meeting)}", flush=True)
            return checkpoint
        passed_over += problems
    if len(keepers) == 1:
        raise CheckpointError(
            f"{folder.path}: no usable checkpoint here ({len(passed_over)} damaged: {passed_over[0]}); "
            "remove them to start afresh"
        )
    held = "; ".join(f"{', '.join(sorted(listed[k])) or 'none'} of {meeting.who([k])}" for k in keepers)
    raise CheckpointError(
        f"no checkpoint is whole in the run directories of all machines (there are {held}; "
        f"{'; '.join(passed_over)}); bring back what is missing, or choose another run name to start afresh"
    )


def _saves(checkpoints: Path) -> dict[str, str]:
    """The finished checkpoints here: name -> which save it is of; pieces of one save fit together."""
    saves = {}
    for path in finished_checkpoints(checkpoints):
        try:
            saves[path.name] = str(read_json(path / MANIFEST).get("save", ""))
        except (OSError, ValueError, AttributeError):
            saves[path.name] = "unreadable"  # verifying it says why
    return saves


def _verified(folder: RunFolder, name: str, engine: EngineConfig) -> tuple[dict[str, Any] | None, str | None]:
    """The manifest of a checkpoint whose files are all here, or what is wrong with it."""
    path = folder.checkpoints / name
    try:
        manifest = read_manifest(path)
        saved = described_checkpoint(path, manifest)
    except CheckpointError as error:
        return None, str(error)
    if not saved.config.engine.zero_stage:  # all of it is in every copy
        return manifest, None
    anew = divides_anew(saved.config.engine, saved.world_size, engine, len(folder.keepers))
    wanted = set(range(saved.world_size) if anew else folder.ranks)
    missing = sorted(wanted - set(manifest.get("ranks") or wanted))
    if not missing:
        return manifest, None
    mend = "start each rank on its machine of before"
    if anew:
        before = saved.config.engine
        mend = (
            "dividing them anew needs all of them in one run directory, so continue with "
            f"{saved.world_size} ranks, engine.zero_stage = {before.zero_stage}, engine.offload = "
            f'"{before.offload}", each rank on its machine of before'
        )
    return None, f"{path}: the pieces of ranks {missing} are not here; {mend}"


def _divided(checkpoint: Checkpoint, config: Config, meeting: Meeting) -> str:
    saved, now, ranks = checkpoint.config.engine, config.engine, meeting.place.size
    if not divides_anew(saved, checkpoint.world_size, now, ranks):
        return ""
    return (
        f": saved by {checkpoint.world_size} rank(s) with ZeRO stage {saved.zero_stage}, divided anew for "
        f"{ranks} with stage {now.zero_stage}"
    )


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
            f"{checkpoint.path}: was trained on other shards than {without_secrets(config.data.shards)}; "
            "use another run name "
            "to start afresh"
        )
    if config.batch.sampling == "paper" and checkpoint.world_size != world_size:
        raise CheckpointError(
            f"{checkpoint.path}: saved by {checkpoint.world_size} ranks, now there are {world_size}: the "
            "paper's batch is one a rank, so continue with as many"
        )
    if config.data.access == "stream":
        _check_same_readers(checkpoint, config, world_size)


def _check_same_readers(checkpoint: Checkpoint, config: Config, world_size: int) -> None:
    """Who reads which shards, and so the batches, follows from the numbers of ranks and data workers. (None
    and one read alike.)"""
    before = checkpoint.world_size, max(1, checkpoint.config.data.workers)
    now = world_size, max(1, config.data.workers)
    if before != now:
        ranks, workers = before
        raise CheckpointError(
            f"{checkpoint.path}: its batches were streamed to {ranks} ranks x {workers} data workers, now "
            f"there are {now[0]} x {now[1]}: continue with as many (data.workers), or start afresh under "
            "another run name"
        )


def continued_engine(
    network: nn.Module,
    config: Config,
    rows_per_rank: int,
    world_size: int,
    run: Path | None,
    checkpoint: Checkpoint,
) -> Any:
    """`start_engine` with the weights and optimizer states of a verified checkpoint, whatever number of ranks
    and ZeRO stage saved it. All ranks take part.

    Raises CheckpointError: a file holds more than tensors, or not what this network needs.
    """
    if not divides_anew(checkpoint.config.engine, checkpoint.world_size, config.engine, world_size):
        engine = start_engine(network, config, rows_per_rank, world_size, run)
        load_engine(engine, checkpoint)
        return engine
    pieces = weights_to_divide(network, checkpoint, config)
    engine = start_engine(network, config, rows_per_rank, world_size, run)
    set_states(engine, pieces)
    return engine


def load_engine(engine: Any, checkpoint: Checkpoint) -> None:
    """Load a verified checkpoint into the engine, on the ranks and at the stage that saved it. All take part.

    Raises CheckpointError: a file holds more than tensors, or DeepSpeed finds none.
    """
    with tensors_only(checkpoint.path):
        loaded, _ = engine.load_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
    if loaded is None:
        raise CheckpointError(
            f"{checkpoint.path}: DeepSpeed found nothing to load there; use another checkpoint"
        )
