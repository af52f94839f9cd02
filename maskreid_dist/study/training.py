"""One training of a study, in this process: train or continue, rank the gallery, write the result."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import torch

from maskreid_dist import exit_status
from maskreid_dist.data.batches import open_recipe_shards
from maskreid_dist.evaluation.evaluate import evaluate_checkpoint, percentages
from maskreid_dist.evaluation.report_facts import minutes_in_steps
from maskreid_dist.study.result import FORMAT, RowResult, packed_queries, write_result
from maskreid_dist.study.study_file import LoadedStudy, Task
from maskreid_dist.terminal import Terminal
from maskreid_dist.training.loop import train
from maskreid_dist.training.machine import processor_name
from maskreid_shards import ShardSet


def result_path(results: Path, task: Task) -> Path:
    return results / f"{task.name}.json"


def run_task(loaded: LoadedStudy, task: Task, runs: Path, results: Path) -> int:
    """Train in `runs`, from the newest checkpoint there, and write the result; returns the exit status
    (maskreid_dist.exit_status)."""
    status = train(task.recipe, task.overrides, runs, resume=True)
    if status != exit_status.DONE:
        return status
    shards = open_recipe_shards(task.config.data)
    checkpoint, ranked = evaluate_checkpoint(runs / task.config.name, shards, Terminal())
    result = RowResult(
        format=FORMAT,
        study=loaded.study.name,
        row=task.row.name,
        seed=task.seed,
        steps=checkpoint.step,
        figures=percentages(ranked.result),
        queries_of=digest_of_queries(shards),
        queries=packed_queries(ranked.result.average_precision, ranked.result.first_rank),
        minutes=minutes_in_steps(checkpoint),
        threads=torch.get_num_threads(),
        processor=processor_here(),
        versions=checkpoint.origin.get("versions", {}),
        commit=checkpoint.origin.get("commit"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        weights_sha256=checkpoint.weights_sha256,
        shards=checkpoint.shards_fingerprint,
        recipe=task.config.model_dump(mode="json"),
    )
    write_result(result_path(results, task), result)
    return exit_status.DONE


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
