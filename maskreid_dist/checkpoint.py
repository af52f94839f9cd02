"""Checkpoints that a kill cannot spoil.

`RUN/checkpoints/step_00000500/` holds DeepSpeed's own state (model, optimizer), `weights.safetensors` for inference, and
`manifest.json` with the recipe and the size and sha256 of every file. It is written as `step_00000500.partial`, and renamed
when all of it is on disk: a directory without `.partial` is a finished save. DeepSpeed's own `latest` file is not used (it is
written before the other ranks have finished).
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from maskreid_dist.config import Config
from maskreid_dist.distributed import World, average_buffers
from maskreid_dist.errors import CheckpointError, RecipeError
from maskreid_dist.files import sync_directory
from maskreid_dist.recipe import validate

FORMAT = "maskreid-checkpoint-1"
PARTIAL = ".partial"
WEIGHTS = "weights.safetensors"
# What may differ between a checkpoint and the recipe that continues from it.
FREE_ON_RESUME = {"name", "run", "data.shards", "data.workers", "data.on_bad_mask"}
FREE_ON_RESUME |= {f"data.{key}" for key in ("cache", "cache_gb", "prefetch", "bad_samples")}
FREE_ON_RESUME |= {"engine.collective_timeout_s", "engine.zero_stage"}  # the stage has a check of its own


@dataclass(frozen=True)
class Checkpoint:
    """A finished save whose files were verified. `step` is the number of steps done."""

    path: Path
    step: int
    config: Config
    classes: int
    world_size: int
    shards_fingerprint: str


def save_checkpoint(
    engine: Any, run: Path, step: int, config: Config, classes: int, shards_fingerprint: str, world: World
) -> Path:
    """Save the engine's state after `step` steps. All ranks take part; rank 0 commits."""
    average_buffers(engine.module, world)
    tag = f"step_{step:08d}"
    folder = run / "checkpoints"
    partial, final = folder / (tag + PARTIAL), folder / tag
    if world.is_first:
        folder.mkdir(exist_ok=True)
        # A finished one of this step or a later one failed its verification, or this save would not be made.
        later = [path for path in finished_checkpoints(folder) if path.name >= tag]
        for stale in (partial, *later):
            shutil.rmtree(stale, ignore_errors=True)
    world.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    world.barrier()  # every rank's file is written
    if world.is_first:
        state = {name: t.detach().cpu().contiguous() for name, t in engine.module.state_dict().items()}
        save_file(state, partial / WEIGHTS)
        _write_manifest(
            partial,
            {
                "format": FORMAT,
                "step": step,
                "classes": classes,
                "world_size": world.size,
                "shards_fingerprint": shards_fingerprint,
                "config": config.model_dump(mode="json"),
            },
        )
        os.replace(partial, final)
        sync_directory(folder)
        _prune(folder, config.run.keep_checkpoints)
    world.barrier()
    return final


def _write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    with (folder / "manifest.json").open("w") as file:
        json.dump({**facts, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(folder)


def _prune(folder: Path, keep: int) -> None:
    finished = finished_checkpoints(folder)
    for path in finished[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"step_*{PARTIAL}"):  # left by a killed save
        shutil.rmtree(path, ignore_errors=True)


def finished_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoint directories, oldest first."""
    return sorted(p for p in folder.glob("step_*") if p.is_dir() and not p.name.endswith(PARTIAL))


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify one checkpoint directory, every file by size and sha256. Raises CheckpointError naming the file."""
    manifest_path = path / "manifest.json"
    try:
        manifest = json.loads(manifest_path.read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{manifest_path}: format {manifest['format']!r}, not {FORMAT!r}; save it again with this version"
            )
        files: dict[str, dict[str, Any]] = manifest["files"]
        for name, expected in files.items():
            _verify_file(path / name, expected["bytes"], expected["sha256"])
        return Checkpoint(
            path,
            manifest["step"],
            validate(manifest["config"], str(manifest_path)),
            manifest["classes"],
            manifest["world_size"],
            manifest["shards_fingerprint"],
        )
    except RecipeError as error:
        raise CheckpointError(f"{error}; it was saved by another version") from None
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: missing; name a directory such as runs/demo or one of its checkpoints"
        ) from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{manifest_path}: not a checkpoint manifest ({type(error).__name__}: {error})"
        ) from None


def _verify_file(path: Path, size: int, sha256: str) -> None:
    if path.stat().st_size != size:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes, the manifest says {size}; use another checkpoint"
        )
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise CheckpointError(f"{path}: its sha256 differs from the manifest's; use another checkpoint")


def find_checkpoint(path: Path) -> tuple[Checkpoint, list[str]]:
    """A checkpoint directory itself, or the newest one of a run directory that verifies, with what was passed over.

    Raises CheckpointError when there is none.
    """
    if (path / "manifest.json").is_file():
        return read_checkpoint(path), []
    passed_over: list[str] = []
    for candidate in reversed(finished_checkpoints(path / "checkpoints")):
        try:
            return read_checkpoint(candidate), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    damaged = f" ({len(passed_over)} damaged: {passed_over[0]})" if passed_over else ""
    raise CheckpointError(
        f"{path}: no usable checkpoint here{damaged}; name a run directory or one of its checkpoints"
    )


def check_continues(checkpoint: Checkpoint, config: Config, shards_fingerprint: str, world_size: int) -> None:
    """Raise CheckpointError, naming the first key that differs, if the recipe cannot continue from the checkpoint."""
    saved, wanted = checkpoint.config.model_dump(), config.model_dump()
    for section in sorted(set(saved) - FREE_ON_RESUME):
        pairs = [(section, saved[section], wanted[section])]
        if isinstance(saved[section], dict):
            pairs = [(f"{section}.{k}", v, wanted[section][k]) for k, v in saved[section].items()]
        for key, before, now in pairs:
            if before != now and key not in FREE_ON_RESUME:
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


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Inference weights into a network of the checkpoint's own recipe. Raises CheckpointError on a mismatch."""
    try:
        network.load_state_dict(load_file(checkpoint.path / WEIGHTS))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.path / WEIGHTS}: does not match its recipe: {first}") from None
