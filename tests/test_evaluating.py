"""Evaluation while training: exact over ranks, no trace in the training, and the best checkpoint stays."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from gloo import run_ranks
from maskreid_dist.config import Config
from maskreid_dist.evaluation.embed import embed_split
from maskreid_dist.evaluation.evaluate import rank_gallery
from maskreid_dist.model import ReIDNetwork, build_network
from maskreid_dist.model.checkpoint import finished_checkpoints, read_best
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place
from maskreid_dist.training.evaluating import Evaluations, _as_saved, rank_over_ranks
from maskreid_dist.training.preparing import prepare
from maskreid_dist.training.run_folder import RunFolder
from maskreid_dist.training.saving import _prune
from maskreid_shards import ShardError, open_shards
from nodes import Ended, run_nodes, write_recipe
from program import run

BOTH = ("--set", "loss.identity_weight=0.1")  # with dropout


def train(tmp_path: Path, *arguments: str) -> Ended:
    """Two ranks."""
    first, second = run_nodes([[write_recipe(tmp_path), "--runs", tmp_path, *BOTH, *arguments]] * 2)
    assert (first.status, second.status) == (0, 0), first.output + second.output
    return first


def records(folder: Path, key: str) -> dict[int, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def test_figures_are_the_checkpoints_and_the_training_is_as_without(converted: Path, tmp_path: Path) -> None:
    evaluated = tmp_path / "tiny"
    every_second = ("--set", "run.evaluate_every=2", "--set", f"run.evaluate_shards={converted}")
    output = train(tmp_path, *every_second).output
    train(tmp_path, "--set", "name=plain")
    assert records(evaluated, "loss") == records(tmp_path / "plain", "loss")
    saved, plain = (
        load_file(folder / "checkpoints" / "step_00000004" / "weights.safetensors")
        for folder in (evaluated, tmp_path / "plain")
    )
    assert all(torch.equal(value, plain[name]) for name, value in saved.items())

    figures = records(evaluated, "mAP_hits")
    assert list(figures) == [2, 4]
    for checkpoint in finished_checkpoints(evaluated / "checkpoints"):
        json_path = tmp_path / f"{checkpoint.name}.json"
        status, _ = run("evaluate", checkpoint, converted, "--output", json_path)
        assert status == 0
        step = int(checkpoint.name.removeprefix("step_"))
        for key, value in json.loads(json_path.read_text()).items():
            if key not in ("unit", "cameras", "valid_queries", "skipped_queries"):
                assert round(records(evaluated, key)[step], 2) == value, key

    best = max(figures, key=lambda step: figures[step])
    named = json.loads((evaluated / "best.json").read_text())
    assert named["step"] == best
    assert named["mAP_hits"] == figures[best]
    assert (evaluated / named["checkpoint"] / "weights.safetensors").is_file()
    assert f"step 2/4: mAP {figures[2]:.2f}" in output
    assert "(the best so far)" in output
    html = tmp_path / "report.html"
    assert run("evaluate", evaluated, converted, "--report", html)[0] == 0
    assert "mAP (hits), per cent" in html.read_text()

    # One that a stop or a kill prevented is made up for, by another number of ranks too; more steps go on
    # from what was the best, and keep it beside the newest two.
    lines = (evaluated / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "mAP_hits" in lines[-1]
    (evaluated / "metrics.jsonl").write_text("".join(lines[:-1]))
    (evaluated / "best.json").unlink()
    more = ("run.evaluate_every=1", "optimizer.steps=8", "run.checkpoint_every=1")
    resume = [*BOTH, *every_second, "--resume", *(word for key in more for word in ("--set", key))]
    (node,) = run_nodes([[write_recipe(tmp_path), "--runs", tmp_path, *resume]])
    assert node.status == 0, node.output
    again = records(evaluated, "mAP_hits")
    assert list(again) == [2, 4, 5, 6, 7, 8]
    assert again[4] == pytest.approx(figures[4], abs=1e-3)
    best = max(list(again)[1:], key=lambda step: again[step])  # of step 2 it knows no more
    assert json.loads((evaluated / "best.json").read_text())["step"] == best
    best_at_7 = max(range(4, 8), key=lambda step: again[step])  # when the last save was made
    kept = [f"step_{step:08d}" for step in sorted({best_at_7, 7, 8})]
    assert [path.name for path in finished_checkpoints(evaluated / "checkpoints")] == kept
    status, said = run("evaluate", evaluated, converted, "--best")
    assert status == 0 and f"tiny, step {best}" in said


@pytest.fixture
def config(converted: Path, tmp_path: Path) -> Config:
    return load_recipe(write_recipe(tmp_path), [f"data.shards={converted}"])


def alone() -> Any:
    """A world of this process."""
    meeting = SimpleNamespace(from_first=lambda value: value)
    return SimpleNamespace(
        rank=0, size=1, is_first=True, device=torch.device("cpu"), control=None, meeting=meeting
    )


def evaluations_of(config: Config, folder: Path, world: Any = None) -> Evaluations:
    return Evaluations(
        config, open_shards(config.data.shards), world or alone(), RunFolder(folder, 0, (0,), None)
    )


def network_of(config: Config, rank: int = 0) -> ReIDNetwork:
    """The same weights on every rank, and other running statistics."""
    torch.manual_seed(3)
    network = build_network(config, 0)
    for name, buffer in network.named_buffers():
        if "running_var" in name:
            buffer += rank
    return network


def _on_three_ranks(rank: int, size: int, config: Config, folder: Path) -> None:
    """Two queries and twelve gallery images: the last rank has no query of its own."""
    world: Any = SimpleNamespace(
        rank=rank, size=size, device=torch.device("cpu"), control=dist.new_group(backend="gloo")
    )
    shards = open_shards(config.data.shards)
    network = network_of(config, rank)
    figures, better = evaluations_of(config, folder, world).evaluate(network, 1)
    assert better
    assert all(
        torch.equal(a, b) for a, b in zip(network.buffers(), network_of(config, rank).buffers(), strict=True)
    )
    (folder / f"{rank}.json").write_text(json.dumps(figures))
    with _as_saved(network, world):
        result = rank_over_ranks(network, shards, config, world)
    np.save(folder / f"{rank}.npy", result.average_precision)


def test_over_three_ranks_as_over_one(config: Config, tmp_path: Path) -> None:
    run_ranks(_on_three_ranks, 3, tmp_path, config, tmp_path)
    shards = open_shards(config.data.shards)
    network = network_of(config, 1)  # the mean of 0, 1, 2
    query, gallery = (
        embed_split(network, shards.split(name), config, torch.device("cpu")) for name in ("query", "gallery")
    )
    result = rank_gallery("", query, gallery, shards).result
    for rank in range(3):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx({name: 100 * value for name, value in result.metrics().items()})
        assert np.array_equal(np.load(tmp_path / f"{rank}.npy"), result.average_precision)


def test_modes_buffers_and_random_state_are_as_before() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2).eval())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError), _as_saved(network, alone()):
        assert not any(part.training for part in network.modules())
        torch.rand(5)
        network[0].running_mean += 1  # type: ignore[operator, assignment]
        raise ZeroDivisionError
    assert [part.training for part in network.modules()] == [True, True, True, False]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(network[0].running_mean, torch.zeros(2))  # type: ignore[arg-type]


def figures_are(monkeypatch: pytest.MonkeyPatch, *mAPs: float) -> None:
    values = iter(mAPs)
    monkeypatch.setattr(
        "maskreid_dist.training.evaluating.rank_over_ranks",
        lambda *_: SimpleNamespace(metrics=lambda: {"mAP_hits": next(values)}),
    )


def test_the_best_is_the_first_of_equals(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named once its checkpoint is there, saved for it where no save was due."""
    evaluations = evaluations_of(config, tmp_path)
    figures_are(monkeypatch, 0.25, 0.25, 0.125, 0.5)
    noted: list[Any] = []
    for step in (1, 2, 3, 4):
        before = read_best(tmp_path)
        save = lambda before=before: noted.append(("saved", read_best(tmp_path) == before))  # noqa: E731
        evaluations.make(
            nn.Linear(1, 1),
            step,
            None if step == 2 else save,
            lambda step, _, better: noted.append((step, better)),
        )
    assert noted == [("saved", True), (1, True), (2, False), (3, False), ("saved", True), (4, True)]
    named = read_best(tmp_path)
    assert named is not None and named == evaluations.best
    assert (named["step"], named["mAP_hits"], named["checkpoint"]) == (4, 50.0, "checkpoints/step_00000004")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"step": 9}, "no longer there"),
        ({"checkpoint": "checkpoints/x"}, "no longer there"),
        ({"shards": "others"}, "of other shards"),
    ],
)
def test_a_best_that_counts_no_more_is_said(
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str | None,
) -> None:
    evaluations = evaluations_of(config, tmp_path)
    assert evaluations.shards
    best = {"step": 4, "mAP_hits": 50.0, "checkpoint": "checkpoints/step_00000004"}
    (tmp_path / best["checkpoint"]).mkdir(parents=True)  # type: ignore[operator]
    (tmp_path / "best.json").write_text(
        json.dumps(best | {"shards": evaluations.shards.fingerprint} | change)
    )
    evaluations.continue_from(6)
    said = capsys.readouterr().out
    if words is None:
        assert evaluations.best is not None and said == "" and (tmp_path / "best.json").exists()
    else:
        assert evaluations.best is None and words in said and not (tmp_path / "best.json").exists()


def test_one_that_was_due_and_not_made_is_missing(config: Config, tmp_path: Path) -> None:
    run = config.run.model_copy(update={"evaluate_every": 2})
    evaluations = evaluations_of(config.model_copy(update={"run": run}), tmp_path)  # 4 steps
    assert [step for step in range(5) if evaluations.due(step)] == [0, 2, 4]
    missing = [(start, evaluations.missing(start, {2})) for start in range(5)]
    assert missing == [(0, False), (1, False), (2, False), (3, False), (4, True)]


def test_the_rotation_spares_the_best(tmp_path: Path) -> None:
    for step in range(5):
        (tmp_path / f"step_{step:08d}").mkdir()
    (tmp_path / "step_00000004.partial").mkdir()
    _prune(tmp_path, 2, "step_00000001")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_0000000{step}" for step in (1, 3, 4)]
    _prune(tmp_path, 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_a_removal_that_is_killed_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        if path.is_dir():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    for step in range(3):
        (tmp_path / f"step_{step:08d}").mkdir()
        (tmp_path / f"step_{step:08d}" / "manifest.json").touch()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("maskreid_dist.training.saving.remove_folder", killed)
        _prune(tmp_path, 2, None)
    whole = finished_checkpoints(tmp_path)
    assert [path.name for path in whole] == ["step_00000001", "step_00000002"]
    assert all((path / "manifest.json").exists() for path in whole)
    _prune(tmp_path, 2, None)
    assert sorted(tmp_path.iterdir()) == whole


def test_a_run_without_a_best_checkpoint_is_one_line(converted: Path, tmp_path: Path) -> None:
    status, output = run("evaluate", tmp_path, converted, "--best")
    assert status == 2
    assert f"{tmp_path / 'best.json'}: names no best checkpoint" in output and output.count("\n") == 1


def test_what_it_would_fail_on_is_found_before_the_first_step(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskreid_dist.training.preparing._check_deepspeed", lambda: None)
    recipe = write_recipe(tmp_path)
    place = Place(0, 0, 1)
    every = "run.evaluate_every=2"
    with pytest.raises(ShardError, match=str(tmp_path)):
        prepare(recipe, [every, f"run.evaluate_shards={tmp_path}"], place)
    assert prepare(recipe, [f"run.evaluate_shards={tmp_path}"], place).validation is None
    prepared = prepare(recipe, [every, f"run.evaluate_shards={converted}"], place)
    assert prepared.validation and prepared.validation.splits == open_shards(converted).splits
    assert prepare(recipe, [every], place).validation is not None  # data.shards
