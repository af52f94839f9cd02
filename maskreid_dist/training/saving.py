"""Saving checkpoints that a kill cannot spoil; `maskreid_dist.model.checkpoint` says what one holds.

It is written as `step_00000500.partial`, and renamed when all of it is on disk. DeepSpeed's own `latest` file
is not used (it is written before the other ranks have finished).
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from maskreid_dist.config import Config
from maskreid_dist.model.checkpoint import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    WEIGHTS,
    finished_checkpoints,
    is_step,
    read_best,
)
from maskreid_dist.training.ema import Ema
from maskreid_dist.training.engine import full_state
from maskreid_dist.training.memory import MEMORY, Memory, save_memory, whole_memory
from maskreid_dist.training.run_folder import RunFolder
from maskreid_dist.training.world import World
from maskreid_shards.atomic import create, naming, plain_folder, remove_folder, sync_folder


def save_checkpoint(
    engine: Any,
    folder: RunFolder,
    step: int,
    config: Config,
    facts: dict[str, Any],
    world: World,
    memory: Memory | None = None,
    ema: Ema | None = None,
) -> Path:
    """Save the engine's state after `step` steps. All ranks take part; each run directory's keeper commits.

    ema: its averages are what weights.safetensors holds.
    facts: what the manifest holds besides: the network's classes, the shards' fingerprint, changed keys.
    Raises OSError on a rank whose files cannot be written: no rank commits, the barrier before ends with it.
    """
    average_buffers(engine.module, world)
    tag = f"step_{step:08d}"
    partial, final = folder.checkpoints / (tag + PARTIAL), folder.checkpoints / tag
    save = world.token()  # pieces on several disks are of one save
    if folder.is_keeper:
        plain_folder(folder.checkpoints, own=False)
        # A checkpoint at or past this step failed verification, or we would have resumed from it: remove it.
        later = [path for path in finished_checkpoints(folder.checkpoints) if path.name >= tag]
        remove_folder(partial)
        for stale in later:
            _take_out(stale)
    world.barrier()
    with _writing(partial):
        engine.save_checkpoint(str(folder.checkpoints), tag=partial.name, save_latest=False)
    with ema.applied(engine.module, keep=True) if ema else nullcontext():
        if ema:
            average_buffers(engine.module, world)
        state = full_state(engine.module, folder.is_keeper)
    whole = whole_memory(memory, config.model.embedding_dim, world) if memory else None
    world.barrier()  # every rank's file is written
    if folder.is_keeper:
        check_pieces(partial, config.engine.zero_stage, folder.ranks)
        with _writing(partial / WEIGHTS):
            save_file(state, partial / WEIGHTS)
        if whole:
            with _writing(partial / MEMORY):
                save_memory(whole, partial)
        _write_manifest(
            partial,
            {
                "format": FORMAT,
                "step": step,
                "save": save,
                "ranks": folder.ranks,  # whose pieces are here
                "world_size": world.size,
                "config": config.model_dump(mode="json"),
                **facts,
            },
        )
    world.barrier()  # all of it is on disk, on every disk
    if folder.is_keeper:
        os.replace(partial, final)
        sync_folder(folder.checkpoints)
        best = read_best(folder.path)  # its checkpoint stays
        kept = Path(best["checkpoint"]).name if best else None
        _prune(folder.checkpoints, config.run.keep_checkpoints, kept)
    world.barrier()
    return final


def check_pieces(folder: Path, zero_stage: int, ranks: Sequence[int]) -> None:
    """Raise FileNotFoundError naming the first file that DeepSpeed should have written for the ranks and is
    not here."""
    wanted = ["mp_rank_00_model_states.pt"]
    if zero_stage == 3:  # each rank has its part of the weights
        wanted = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks]
    if zero_stage:
        wanted += [f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in ranks]
    for pattern in wanted:
        if not any(folder.glob(pattern)):
            raise FileNotFoundError(
                errno.ENOENT, "was not written; not one disk for all ranks?", str(folder / pattern)
            )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of torch's and safetensors' own writers as an OSError that names `path`."""
    with naming(path):
        try:
            yield
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            raise OSError(
                errno.EIO, f"cannot be written ({str(error).splitlines()[0]})", str(path)
            ) from error


def _write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    with naming(folder / MANIFEST), create(folder / MANIFEST) as file:
        file.write(json.dumps({**facts, "files": files}, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _prune(folder: Path, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    finished = finished_checkpoints(folder)
    for path in finished[:-keep]:
        if path.name != best:
            _take_out(path)
    for path in folder.glob(f"step_*{PARTIAL}"):  # left by a killed save or removal
        if is_step(path.name.removesuffix(PARTIAL)):
            remove_folder(path)


def _take_out(checkpoint: Path) -> None:
    """Remove a finished checkpoint. First its name goes: what a kill leaves of it is none, and the next save
    removes that."""
    nameless = checkpoint.with_name(checkpoint.name + PARTIAL)
    remove_folder(nameless)
    with suppress(OSError):  # one that cannot be removed is left
        checkpoint.replace(nameless)
        remove_folder(nameless)


def average_buffers(module: nn.Module, world: World) -> None:
    """Give every rank the mean of the floating-point buffers (batch normalisation's running statistics).

    DeepSpeed does not synchronise them, so ranks drift apart, and only rank 0's
    would be saved. All ranks take part.
    """
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if world.size == 1 or not buffers:
        return
    flat = torch.cat([b.detach().reshape(-1).float() for b in buffers])
    dist.all_reduce(flat)
    flat /= world.size
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
