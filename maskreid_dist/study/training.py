"""One training of a study, in this process: train or continue, rank the gallery, write the result. Of a row
with another's network, the latter two."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import torch

from maskreid_dist import exit_status
from maskreid_dist.data.batches import open_recipe_shards
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.evaluate import checkpoint_of, load_network, name_of, percentages, rank_network
from maskreid_dist.evaluation.report_facts import minutes_in_steps
from maskreid_dist.model.checkpoint import find_checkpoint, finished_checkpoints
from maskreid_dist.run_directory import CHECKPOINTS
from maskreid_dist.study.result import FORMAT, RowResult, packed_queries, write_result
from maskreid_dist.study.study_file import LoadedStudy, Task, same_training
from maskreid_dist.terminal import Terminal
from maskreid_dist.training.loop import train
from maskreid_dist.training.machine import processor_name
from maskreid_shards import ShardSet


def result_path(results: Path, task: Task) -> Path:
    return results / f"{task.name}.json"


def run_task(loaded: LoadedStudy, task: Task, runs: Path, results: Path) -> int:
    """Train in `runs`, from the newest checkpoint there, and write the result; returns the exit status
    (maskreid_dist.exit_status). Raises UserError: the network of another row is not there."""
    if task.source is None:
        status = train(task.recipe, task.overrides, runs, resume=True)
        if status != exit_status.DONE:
            return status
    elif not is_trained(task.source, runs):
        raise UserError(f"{runs / task.source.config.name}: no network yet; train row {task.row.network_of}")
    shards = open_recipe_shards(task.config.data)
    console = Terminal()
    checkpoint = checkpoint_of(runs / (task.source or task).config.name, console)
    ranked = rank_network(name_of(checkpoint), load_network(checkpoint), task.config, shards, console)
    result = RowResult(
        format=FORMAT,
        study=loaded.study.name,
        row=task.row.name,
        seed=task.seed,
        steps=checkpoint.step,
        figures=percentages(ranked.result),
        queries_of=digest_of_queries(shards),
        queries=packed_queries(ranked.result.average_precision, ranked.result.first_rank),
        minutes=minutes_in_steps(checkpoint) if task.source is None else None,
        threads=torch.get_num_threads(),
        processor=processor_here(),
        versions=checkpoint.origin.get("versions", {}),
        commit=checkpoint.origin.get("commit"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        weights_sha256=checkpoint.weights_sha256,
        shards=shards.split("train").fingerprint,
        recipe=task.config.model_dump(mode="json"),
        network_of=task.row.network_of,
    )
    write_result(result_path(results, task), result)
    return exit_status.DONE


def is_trained(task: Task, runs: Path) -> bool:
    """Whether its run directory has the network of its last step."""
    run = runs / task.config.name
    if not finished_checkpoints(run / CHECKPOINTS):
        return False
    checkpoint, _ = find_checkpoint(run)
    alike = same_training(checkpoint.config.model_dump(mode="json"), task.config)
    return alike and checkpoint.step >= task.config.optimizer.steps


def processor_here() -> str:
    """What computes: the GPU's name, the processor's without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()


def digest_of_queries(shards: ShardSet) -> str:
    """sha256 of the keys and labels of queries and gallery, in their order: images are the same where masks
    may differ."""
    digest = hashlib.sha256()
    for split in (shards.split("query"), shards.split("gallery")):
        for column in (split.keys, split.pids, split.camids):
            digest.update(f"{len(column)} {column.dtype.str}\0".encode() + column.tobytes())
    return digest.hexdigest()
