"""Finished checkpoints: found in a run directory, verified, and their weights loaded.

`RUN/checkpoints/step_00000500/` holds DeepSpeed's own state (model, optimizer), `weights.safetensors` for
inference, and `manifest.json` with the recipe and the size and sha256 of every file. A directory whose name
ends in `.partial` is a save that has not ended, or was killed.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from maskreid_dist.config import Config, Count, Positive, Section
from maskreid_dist.errors import CheckpointError, RecipeError
from maskreid_dist.model.build import build_network
from maskreid_dist.model.pretrained import place_of
from maskreid_dist.recipe import describe, validate
from maskreid_dist.run_directory import BEST, CHECKPOINTS
from maskreid_shards.opening import read_json, regular_only
from maskreid_shards.shown import in_a_line

FORMAT = "maskreid-checkpoint-1"
PARTIAL = ".partial"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"


class SavedFile(Section):
    """As the manifest says."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Saved(BaseModel):
    """What is read of a manifest, in its form; it may say more."""

    model_config = ConfigDict(strict=True)

    format: str
    step: Count
    world_size: Positive
    classes: Annotated[int, Field(ge=0, lt=2**31)]
    shards_fingerprint: str
    config: dict[str, Any]
    files: dict[str, SavedFile]
    save: str = ""
    ranks: list[Count] | None = None
    initial_weights: dict[str, Any] | None = None
    changes: list[dict[str, Any]] = []
    data: dict[str, Any] = {}

    @field_validator("files")
    @classmethod
    def _weights_and_nothing_outside(cls, files: dict[str, SavedFile]) -> dict[str, SavedFile]:
        if WEIGHTS not in files:
            raise ValueError(f"{WEIGHTS} is not listed")
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name:
                raise ValueError(f"{name!r} is no file below the checkpoint's folder")
        return files


@dataclass(frozen=True)
class Checkpoint:
    """A finished save whose files were verified. `step` is the number of steps done."""

    path: Path
    step: int
    config: Config
    classes: int
    world_size: int
    shards_fingerprint: str
    initial_weights: dict[str, Any] | None  # the map of what model.init gave (maskreid_dist.model.initial)
    changes: list[dict[str, Any]]  # keys that were changed when a training was continued: step, key, from, to
    weights_sha256: str  # of WEIGHTS: what makes embeddings comparable
    # Of the last start (maskreid_dist.training.origin); {} in those of before it was recorded.
    origin: dict[str, Any] = field(default_factory=dict)
    # Of the shards it was trained on (maskreid_dist.training.preparing); {} in those of before, too.
    data: dict[str, Any] = field(default_factory=dict)


def finished_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoint directories, oldest first. What is named otherwise, or a link, is none of ours."""
    return sorted(p for p in folder.glob("step_*") if is_step(p.name) and p.is_dir() and not p.is_symlink())


def is_step(name: str) -> bool:
    """Whether a folder is named as saves are."""
    return re.fullmatch(r"step_\d{8,}", name, re.ASCII) is not None


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify one checkpoint directory, every file by size and sha256. Raises
    CheckpointError naming the file."""
    return described_checkpoint(path, read_manifest(path))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory whose files were verified by it. Raises CheckpointError naming
    the file."""
    manifest_path = path / MANIFEST
    try:
        manifest = read_json(manifest_path)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found is None:
            raise CheckpointError(f"{manifest_path}: not a checkpoint manifest; use another checkpoint")
        if found != FORMAT:
            odd = in_a_line(repr(found), 80)
            raise CheckpointError(
                f"{manifest_path}: format {odd}, not {FORMAT!r}; save it again with this version"
            )
        files = Saved.model_validate(manifest).files
        for name, expected in files.items():
            _verify_file(path / name, expected.bytes, expected.sha256)
        # DeepSpeed takes files by pattern: one that nobody listed would be loaded too.
        there = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
        if foreign := sorted(there - set(files) - {MANIFEST}):
            raise CheckpointError(f"{path / foreign[0]}: not in the manifest; use another checkpoint")
        checkpoint = described_checkpoint(path, manifest)
        _check_weights(path / WEIGHTS, checkpoint)
        described: dict[str, Any] = manifest
        return described
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: missing; name a directory such as runs/demo or one of its checkpoints"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}; use another checkpoint") from None
    except CheckpointError:  # a ValueError too
        raise
    except ValidationError as error:
        raise CheckpointError(f"{manifest_path}: not a checkpoint manifest: {describe(error)}") from None
    except ValueError as error:
        raise CheckpointError(
            f"{manifest_path}: not a checkpoint manifest ({type(error).__name__}: {error})"
        ) from None


def described_checkpoint(path: Path, manifest: dict[str, Any]) -> Checkpoint:
    """The checkpoint of a manifest whose files were verified. Raises CheckpointError: of another version."""
    try:
        config = validate(manifest["config"], str(path / MANIFEST))
    except RecipeError as error:
        raise CheckpointError(f"{error}; it was saved by another version") from None
    return Checkpoint(
        path,
        manifest["step"],
        config,
        manifest["classes"],
        manifest["world_size"],
        manifest["shards_fingerprint"],
        manifest.get("initial_weights"),
        manifest.get("changes", []),  # none in those of before they were recorded
        manifest["files"][WEIGHTS]["sha256"],
        manifest.get("origin", {}),
        manifest.get("data", {}),
    )


def _verify_file(path: Path, size: int, sha256: str) -> None:
    with open(path, "rb", opener=regular_only) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise CheckpointError(f"{path}: {found} bytes, the manifest says {size}; use another checkpoint")
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise CheckpointError(f"{path}: its sha256 differs from the manifest's; use another checkpoint")


def _check_weights(path: Path, checkpoint: Checkpoint) -> None:
    """Names and shapes first, against the network of the manifest, of which nothing is allocated: numbers in
    a manifest may ask for more memory than there is. Values may be not finite in those of before the training
    itself looked."""
    try:
        with safe_open(path, "pt") as weights:
            with torch.device("meta"):
                network = build_network(checkpoint.config, checkpoint.classes)
            wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
            there = {name: weights.get_slice(name).get_shape() for name in weights.keys()}
            other = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
            if other:
                raise CheckpointError(
                    f"{path}: does not match its recipe: {other[0]} is {there.get(other[0], 'missing')} and "
                    f"should be {wanted.get(other[0], 'missing')}; use another checkpoint"
                )
            for name in weights.keys():
                if not weights.get_tensor(name).isfinite().all():
                    raise CheckpointError(f"{path}: {name} is not finite; use another checkpoint")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not safetensors ({error}); use another checkpoint") from None
    except (RuntimeError, OverflowError, TypeError) as error:  # of sizes that not even a shape can have
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: no network of its recipe ({first}); use another checkpoint") from None


def find_checkpoint(path: Path) -> tuple[Checkpoint, list[str]]:
    """A checkpoint directory itself, a network of this package ("pretrained:NAME"), or the newest checkpoint
    of a run directory that verifies, with what was passed over.

    Raises CheckpointError when there is none.
    """
    path = place_of(path)
    if (path / MANIFEST).is_file():
        return read_checkpoint(path), []
    passed_over: list[str] = []
    for candidate in reversed(finished_checkpoints(path / CHECKPOINTS)):
        try:
            return read_checkpoint(candidate), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    damaged = f" ({len(passed_over)} damaged: {passed_over[0]})" if passed_over else ""
    raise CheckpointError(
        f"{path}: no usable checkpoint here{damaged}; name a run directory or one of its checkpoints"
    )


def read_best(run: Path) -> dict[str, Any] | None:
    """`best.json` of a run directory: `step`, figures in per cent, `checkpoint`, the fingerprint of the
    `shards`; None where there is none, or not of that form."""
    try:
        best = read_json(run / BEST)
    except (OSError, ValueError):
        return None
    known = isinstance(best, dict) and isinstance(best.get("step"), int) and "shards" in best
    return best if known and isinstance(best.get("checkpoint"), str) else None


def best_checkpoint(run: Path) -> Path:
    """The checkpoint that `best.json` of a run directory names. Raises CheckpointError: there is none."""
    best = read_best(run)
    if best is None:
        raise CheckpointError(
            f"{run / BEST}: names no best checkpoint; train with run.evaluate_every, or leave out --best"
        )
    return run / CHECKPOINTS / Path(best["checkpoint"]).name


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Inference weights into a network of the checkpoint's own recipe. Raises
    CheckpointError on a mismatch."""
    try:
        network.load_state_dict(load_file(checkpoint.path / WEIGHTS))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.path / WEIGHTS}: does not match its recipe: {first}") from None
