"""Ranks whose weights part, and values that are not finite: nothing is saved, and the step, images and ranks
are named."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from maskreid_dist.data.batches import make_plan
from maskreid_dist.model.checkpoint import find_checkpoint, finished_checkpoints
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.divergence import FiniteWatch
from maskreid_dist.training.replicas import largest_value, weights_digest
from maskreid_dist.training.run_log import RunLog
from maskreid_shards import open_shards
from nodes import LAUNCHERS, Ended, check_left_in_time, run_nodes, write_recipe

HOST = socket.gethostname()
FAULTY = Path(__file__).with_name("faulty_training.py")


def train(
    tmp_path: Path,
    fault: str,
    *overrides: str,
    ranks: int = 2,
    resume: bool = False,
    launcher: str | None = None,
) -> list[Ended]:
    recipe = write_recipe(tmp_path)
    arguments: list[str | Path] = [recipe, "--runs", tmp_path / "runs", *(["--resume"] if resume else [])]
    for override in overrides:
        arguments += ["--set", override]
    folder = tmp_path if launcher else None
    return run_nodes([arguments] * ranks, script=FAULTY, variables={"FAULT": fault}, launcher=folder)


def saved(tmp_path: Path) -> list[str]:
    return [path.name for path in finished_checkpoints(tmp_path / "runs" / "tiny" / "checkpoints")]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_weights_that_part_are_found_before_a_save(
    tmp_path: Path, launcher: str | None, record_property: Callable[[str, object], None]
) -> None:
    nodes = train(tmp_path, "part 1 3", launcher=launcher)
    for node in nodes:
        assert node.status == 1, node.output
        (error,) = node.errors
        assert "the ranks hold different weights after step 4 (the same after step 2)" in error
        assert f"on rank 0 on {HOST}; " in error and f"on rank 1 on {HOST}; nothing was saved since" in error
    assert saved(tmp_path) == ["step_00000002"]
    check_left_in_time(nodes, record_property)


def test_steps_that_are_not_finite_are_left_out_within_the_budget(tmp_path: Path) -> None:
    """A gradient, and images that spoil running statistics too; then a budget of one step only."""
    policy = "run.non_finite=skip"
    nodes = train(tmp_path, "images 1 2 3", policy, "run.non_finite_budget=2")
    assert [node.status for node in nodes] == [0, 0], nodes[0].output
    assert saved(tmp_path) == ["step_00000002", "step_00000004"]
    tensors = load_file(find_checkpoint(tmp_path / "runs" / "tiny")[0].path / "weights.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    events = [
        json.loads(line) for line in (tmp_path / "runs" / "tiny" / "events.jsonl").read_text().splitlines()
    ]
    assert [(event["step"], event["event"]) for event in events] == [(2, "skipped"), (3, "skipped")]
    assert f"embeddings not finite on rank 1 on {HOST}" in events[0]["why"]
    metrics = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 4]

    longer = ("optimizer.steps=8", "run.non_finite_budget=1", policy)
    for node in train(tmp_path, "gradient 1 5 6", *longer, resume=True):
        assert node.status == 2, node.output
        assert len(node.errors) == 1
        assert "the gradients are not finite at step 6; its images: " in node.errors[0]
        assert "run.non_finite_budget allows 1 such steps" in node.errors[0]
    assert len(saved(tmp_path)) == 2


@pytest.mark.faults
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_under_zero_too(tmp_path: Path, stage: int) -> None:
    zero = f"engine.zero_stage={stage}"
    for node in train(tmp_path, "gradient 1 3", zero):
        assert node.status == 2, node.output
        assert node.errors[0].startswith("the gradients are not finite at step 3; its images: ")
    nodes = train(tmp_path, "gradient 1 3", zero, "run.non_finite=skip", resume=True)
    assert [node.status for node in nodes] == [0, 0], nodes[0].output
    (event,) = (tmp_path / "runs" / "tiny" / "events.jsonl").read_text().splitlines()
    assert json.loads(event)["step"] == 3
    assert saved(tmp_path) == ["step_00000002", "step_00000004"]


def test_a_loss_that_is_not_finite_names_step_ranks_and_images(tmp_path: Path) -> None:
    for node in train(tmp_path, "images 1 3", "run.log_every=4"):
        assert node.status == 2, node.output
        (error,) = node.errors
        assert f"the loss is not finite at step 3 (nan on ranks 0-1 on {HOST}" in error
        assert f"embeddings not finite on rank 1 on {HOST})" in error
    config = load_recipe(write_recipe(tmp_path))
    split = open_shards(config.data.shards).split("train")
    samples = make_plan(split, config.batch, config.seed, 2).rank_batch(0, 2, 1, 2)
    keys = [split.index[int(sample)]["key"].decode() for sample in samples]
    assert f"its images: rank 1 {' '.join(keys)} (all in {tmp_path}/runs/tiny/non_finite.json)" in error
    noted = json.loads((tmp_path / "runs" / "tiny" / "non_finite.json").read_text())
    assert noted["step"] == 3 and noted["keys"]["3"][1] == keys and len(noted["keys"]["2"]) == 2
    assert saved(tmp_path) == ["step_00000002"]


def test_weights_that_are_not_finite_are_not_saved_and_the_advice_works(tmp_path: Path) -> None:
    """The last update before a save spoils them: every loss was finite. A smaller rate and more steps go
    on."""
    (node,) = train(tmp_path, "weights 0 4", ranks=1)
    assert node.status == 2, node.output
    assert node.errors[0].startswith("the update of step 4 left weights that are not finite (after step 4: ")
    assert saved(tmp_path) == ["step_00000002"]
    (node,) = train(tmp_path, "weights 0 9", "optimizer.lr=0.0001", "optimizer.steps=5", ranks=1, resume=True)
    assert node.status == 0, node.output
    assert "from step 2 on optimizer.lr is 0.0001, before 0.001" in node.output
    assert saved(tmp_path) == ["step_00000004", "step_00000005"]
    changes = [
        {"step": 2, "key": "optimizer.lr", "from": 0.001, "to": 0.0001},
        {"step": 2, "key": "optimizer.steps", "from": 4, "to": 5},
    ]
    assert find_checkpoint(tmp_path / "runs" / "tiny")[0].changes == changes
    events = [
        json.loads(line) for line in (tmp_path / "runs" / "tiny" / "events.jsonl").read_text().splitlines()
    ]
    assert [(event["step"], event["key"], event["now"]) for event in events] == [
        (2, "optimizer.lr", 0.0001),
        (2, "optimizer.steps", 5),
    ]
    metrics = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in metrics] == [0.001, 0.001, 0.0001, 0.0001, 0.0001]
    with RunLog(tmp_path / "runs" / "tiny", 2, 5) as log:  # from step 2 once more
        log.say_changes(2, changes)
    assert len((tmp_path / "runs" / "tiny" / "events.jsonl").read_text().splitlines()) == 2


def test_the_digest_sees_one_bit_and_two_tensors_that_changed_places() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 3)
    network = nn.Sequential(linear, nn.Linear(3, 3).to(torch.bfloat16), nn.BatchNorm1d(3))
    digest = int(weights_digest(network))
    assert digest == int(weights_digest(network))
    first, second = linear.weight, linear.bias
    with torch.no_grad():
        first.view(torch.int32)[1, 2] ^= 1
        assert int(weights_digest(network)) != digest
        first.view(torch.int32)[1, 2] ^= 1
        assert int(weights_digest(network)) == digest
        before = second.clone()
        first[0], second[:] = before, first[0].clone()
    assert int(weights_digest(network)) != digest


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_the_largest_value_sees_every_tensor(value: float) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert largest_value(network).isfinite()
    network[1].running_var[1] = value  # type: ignore[operator]
    largest = float(largest_value(network))
    assert str(largest) == str(float(torch.tensor(value)))


def test_the_watch_keeps_the_first_step() -> None:
    watch = FiniteWatch(torch.device("cpu"))
    rows = torch.ones(2, 3)
    watch.note(4, torch.tensor(1.0), rows)
    assert watch.read() == {"loss_step": -1, "embeddings_step": -1, "loss": "0.0"}
    watch.note(5, torch.tensor(float("inf")), rows)
    watch.note(6, torch.tensor(float("nan")), rows * torch.nan)
    assert watch.read() == {"loss_step": 5, "embeddings_step": 6, "loss": "inf"}
    watch.clear()
    assert watch.read()["loss_step"] == -1
