"""What a report says beside its figures: what was measured, and everything that trained the network."""

import json
import platform
from collections.abc import Mapping

import numpy as np
import torch

from maskreid_dist import __version__
from maskreid_dist.config import Config, LossConfig
from maskreid_dist.evaluation.evaluate import Ranked
from maskreid_dist.evaluation.labels import Cameras
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.report.curves import read_metrics
from maskreid_dist.run_directory import METRICS
from maskreid_kernels import constants
from maskreid_shards import ShardSet, Split
from maskreid_shards.shown import without_secrets

Facts = Mapping[str, Mapping[str, str]]


def report_facts(checkpoint: Checkpoint, shards: ShardSet, shown: Ranked, cameras: Cameras) -> Facts:
    """By heading, then by name."""
    result = shown.result
    return {
        "Data": {
            "shards": f"{shards.location} ({shards.fingerprint[:12]})",
            "queries": f"{_contents(shards.split('query'))}; {result.valid_queries} valid, "
            f"{result.skipped_queries} skipped",
            "gallery": _contents(shards.split("gallery")),
            "left out": "images of the query's person from its camera"
            if cameras == "labels"
            else "the query's own image, by its key; no camera ids",
            "measured on": device_name(),
            "with": f"maskreid_dist {__version__}, torch {torch.__version__}, Python "
            f"{platform.python_version()}",
        },
        "Network and loss": _network(checkpoint.config),
        "Training": _training(checkpoint),
    }


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"


def recipe_json(config: Config) -> str:
    """The whole recipe, a URL without its secrets."""
    values = config.model_dump(mode="json")
    values["data"]["shards"] = without_secrets(values["data"]["shards"])
    if elsewhere := values["run"]["evaluate_shards"]:
        values["run"]["evaluate_shards"] = without_secrets(elsewhere)
    return json.dumps(values, indent=1)


def loss_text(loss: LossConfig) -> str:
    """Its name and constants, and what is added with which weight."""
    values = {name: getattr(loss, name) for name in constants(loss.name) if hasattr(loss, name)}
    text = loss.name + "".join(f", {name} {value}" for name, value in values.items())
    if loss.identity_weight:
        text += f"; plus {loss.identity_weight:g} x softmax of the identities"
    if loss.label_smoothing:
        text += f", labels smoothed by {loss.label_smoothing:g}"
    if loss.memory:
        text += f"; plus {loss.memory_weight:g} x the same over {loss.memory} past steps"
    return text


def _contents(split: Split) -> str:
    persons = np.unique(split.pids[split.pids > 0])
    text = f"{len(split)} images of {len(persons)} persons in {len(np.unique(split.camids))} cameras"
    for pid, name in ((0, "distractors"), (-1, "junk")):
        if count := int((split.pids == pid).sum()):
            text += f", {count} {name}"
    return text


def _network(config: Config) -> dict[str, str]:
    model, data = config.model, config.data
    return {
        "loss": loss_text(config.loss),
        "trunk": f"{model.backbone}, neck {model.neck}, pooling {model.pooling}",
        "streams": " and ".join(model.streams),
        "fusing": f"{model.fusing}, {model.fusing_rows} rows",
        "width": f"{model.width:g}, {model.embedding_dim} dimensions",
        "input": f"{data.height} x {data.width} pixels, from {data.resize_height} x {data.resize_width}",
        "at inference": "mean of image and mirror image" if model.with_mirror else "the image alone",
        "first weights": model.init or "random",
    }


def _training(checkpoint: Checkpoint) -> dict[str, str]:
    config, origin = checkpoint.config, checkpoint.origin
    batch, optimizer = config.batch, config.optimizer
    versions = origin.get("versions", {})
    return {
        "batch": "the paper's, once a rank"
        if batch.sampling == "paper"
        else f"{batch.identities} identities x {batch.images} images",
        "steps": f"{checkpoint.step} of {optimizer.steps}; ranks: {checkpoint.world_size}",
        "optimizer": f"{optimizer.name}, lr {optimizer.lr:g}, {optimizer.schedule} to "
        f"{optimizer.lr * optimizer.final_lr_factor:g}, {optimizer.warmup_steps} warm-up steps, "
        f"weight decay {optimizer.weight_decay:g}",
        "seed": str(config.seed),
        "changed on the way": "; ".join(
            f"{one['key']} {one['from']} -> {one['to']} at step {one['step']}" for one in checkpoint.changes
        )
        or "nothing",
        "last start": str(origin.get("started", "not recorded")),
        "time": _time_in_steps(checkpoint),
        "commit": str(origin.get("commit") or "none recorded"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",
        "hosts": ", ".join(origin.get("hosts", ())) or "not recorded",
        "trained on": f"{without_secrets(config.data.shards)} ({checkpoint.shards_fingerprint[:12]})",
        "weights": checkpoint.weights_sha256[:12],
    }


def minutes_in_steps(checkpoint: Checkpoint) -> float | None:
    """How long its training took without evaluations and saves, by the run's records up to the checkpoint; a
    step that was done twice counts once. None: there are no records."""
    records = read_metrics(checkpoint.path.parent.parent / METRICS).get("step_ms")
    if records is None:
        return None
    by_step = {step: ms for step, ms in zip(*records, strict=True) if step <= checkpoint.step}
    steps = sorted(by_step)
    seconds = sum(
        (step - before) * by_step[step] / 1000 for before, step in zip([0, *steps], steps, strict=False)
    )
    return seconds / 60


def _time_in_steps(checkpoint: Checkpoint) -> str:
    minutes = minutes_in_steps(checkpoint)
    return "not recorded" if minutes is None else f"{minutes:.1f} minutes in steps"
