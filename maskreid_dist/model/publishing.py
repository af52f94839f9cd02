"""A checkpoint as a folder for others: weights, manifest and card, without what continues a training."""

import hashlib
import json
from pathlib import Path
from typing import Any

from maskreid_dist.errors import UserError
from maskreid_dist.model.checkpoint import FORMAT, MANIFEST, WEIGHTS, Checkpoint
from maskreid_shards.atomic import partial_folder, write_synced
from maskreid_shards.opening import WEIGHTS_BYTES, read_file
from maskreid_shards.shown import without_secrets

CARD = "README.md"
# Of a training's origin: the command, the hosts and the hour are nobody else's.
ORIGIN = ("commit", "versions", "steps")


def write_published(checkpoint: Checkpoint, folder: Path, card: str) -> dict[str, int]:
    """Make `folder`, a checkpoint that `maskreid evaluate` takes; returns the bytes of each file by name.

    Raises UserError: the folder is there already.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; choose another folder, or remove it")
    files = {
        WEIGHTS: read_file(checkpoint.path / WEIGHTS, WEIGHTS_BYTES),
        CARD: card.encode(),
    }
    manifest = json.dumps(published_manifest(checkpoint, files), indent=1) + "\n"
    files[MANIFEST] = manifest.encode()
    with partial_folder(folder) as partial:
        for name, data in files.items():
            write_synced(partial / name, data)
    return {name: len(data) for name, data in files.items()}


def published_manifest(checkpoint: Checkpoint, files: dict[str, bytes]) -> dict[str, Any]:
    """Of the files, with the recipe; without host names and the folders of whoever trained it."""
    config = checkpoint.config.model_dump(mode="json")
    config["data"] |= {"shards": _last_part(config["data"]["shards"]), "cache": None, "cache_gb": None}
    config["run"] |= {"evaluate_shards": None}
    if config["model"]["init"]:
        config["model"]["init"] = _last_part(config["model"]["init"])
    return {
        "format": FORMAT,
        "step": checkpoint.step,
        "world_size": checkpoint.world_size,
        "classes": checkpoint.classes,
        "shards_fingerprint": checkpoint.shards_fingerprint,
        "config": config,
        "changes": checkpoint.changes,
        "data": checkpoint.data,
        "origin": {key: checkpoint.origin[key] for key in ORIGIN if key in checkpoint.origin},
        "initial_weights": _initial(checkpoint.initial_weights),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    }


def _initial(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Which file it was, not where it lay."""
    return {"sha256": facts["sha256"]} if facts and "sha256" in facts else None


def _last_part(location: str) -> str:
    """The folder's name, without the folders around it; a URL without secrets as it is."""
    shown = str(without_secrets(location))
    return shown if "://" in shown else (shown.rstrip("/").rpartition("/")[2] or shown)
