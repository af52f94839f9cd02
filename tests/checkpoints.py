"""A checkpoint of an untrained network in a run directory, without a training."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from maskreid_dist.model import build_network
from maskreid_dist.model.checkpoint import FORMAT, MANIFEST, WEIGHTS
from maskreid_dist.recipe import load_recipe

RECIPE = Path(__file__).parent.parent / "launch" / "recipes" / "walkers_demo.toml"
SMALL = [
    "data.height=36",
    "data.width=14",
    "data.resize_height=40",
    "data.resize_width=16",
    "model.width=0.1",
]


def write_run(run: Path, *overrides: str, seed: int = 0, step: int = 4, origin: Any = None) -> Path:
    """The run directory; weights by the seed."""
    config = load_recipe(RECIPE, [*SMALL, f"name={run.name}", *overrides])
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    save_file(build_network(config, 0).state_dict(), folder / WEIGHTS)
    data = (folder / WEIGHTS).read_bytes()
    manifest = {
        "format": FORMAT,
        "step": step,
        "config": config.model_dump(mode="json"),
        "classes": 0,
        "world_size": 1,
        "shards_fingerprint": "f" * 64,
        "origin": origin or {},
        "files": {WEIGHTS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return run
