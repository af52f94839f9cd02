"""The network that comes with the package: where its figures come from, and commands that take a run."""

import json
from pathlib import Path

import pytest

from maskreid_dist.config import Config
from maskreid_dist.errors import CheckpointError
from maskreid_dist.evaluation.model_card import METRICS
from maskreid_dist.model import build_network
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_dist.model.initial import take_initial_weights
from maskreid_dist.model.pretrained import FOLDER, pretrained_names
from maskreid_dist.study.result import find_results
from program import run
from test_push import front_matter

ROOT = Path(__file__).parent.parent
WALKERS = Path("pretrained:walkers")
RESULTS = ROOT / "launch" / "studies" / "results" / "paper_walkers"


def test_it_is_one_of_the_committed_studys_and_its_card_has_that_ones_figures() -> None:
    checkpoint, _ = find_checkpoint(WALKERS)  # every file by size and sha256
    (result,) = (
        one.result
        for one in find_results(RESULTS).values()
        if one.result.weights_sha256 == checkpoint.weights_sha256
    )
    card = front_matter((FOLDER / "walkers" / "README.md").read_text())
    index = json.loads(json.dumps(card["model-index"]))
    metrics = {one["type"]: one["value"] for one in index[0]["results"][0]["metrics"]}
    assert metrics == {key: result.figures[key] for key in METRICS}
    assert checkpoint.data["dataset"] == "walkers" or not checkpoint.data
    size = sum(path.stat().st_size for path in (FOLDER / "walkers").iterdir())
    assert size < 8_000_000


def test_its_card_says_every_licence() -> None:
    card = (FOLDER / "walkers" / "README.md").read_text()
    assert front_matter(card)["license"] == "apache-2.0"
    assert "- Weights: apache-2.0." in card and "- Training images: GPL-3.0-or-later" in card
    assert card.count("degraded from the exact ones of its renderer (CC0-1.0)") == 2
    assert "not recorded" not in card and "not stated" not in card


def test_names_and_what_is_refused(tmp_path: Path) -> None:
    assert pretrained_names() == ["walkers"]
    with pytest.raises(CheckpointError, match="this package has walkers"):
        find_checkpoint(Path("pretrained:market"))
    status, said = run("calibrate", WALKERS, tmp_path)
    assert status == 2 and "copy the network into a folder of yours" in said
    status, said = run("evaluate", "--pretrained", "walkers", tmp_path)
    assert status == 2 and said.count("\n") == 1 and "in place of the run: pretrained:walkers" in said
    status, said = run("export", WALKERS, tmp_path / "x.safetensors")
    assert status == 2 and said.count("\n") == 1 and "maskreid push" in said and "--output" in said
    status, said = run("demo", "--pretrained", "--set", "optimizer.steps=1")
    assert status == 2 and "--pretrained trains nothing" in said


def test_commands_take_it_for_a_run(converted: Path, tmp_path: Path) -> None:
    others = ("--mask-damage", "swap=1", "--mirror", "--output", tmp_path / "figures.json")
    status, said = run("evaluate", WALKERS, converted, *others)
    assert status == 0 and "valid queries" in said and "masks: swap=1," in said, said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "mAP_hits" in figures["swap=1"] and "mAP_hits" in figures["with_mirror"]
    status, said = run("evaluate", WALKERS, converted, "--mask-damage", "melt=1")
    assert status == 2 and said.count("\n") == 1 and "melt=1: use erode=N" in said
    status, said = run("embed", WALKERS, converted, tmp_path / "gallery")
    assert status == 0, said
    picture = next((converted.parent / "market" / "query").glob("*.jpg"))
    status, said = run("search", WALKERS, tmp_path / "gallery", picture, "--json")
    assert status == 0 and json.loads(said), said
    status, said = run("demo", "--pretrained", "--shards", converted, "--runs", tmp_path / "runs")
    assert status == 0, said
    figures = json.loads((tmp_path / "runs" / "pretrained_walkers" / "metrics.json").read_text())
    assert figures["trained"]["mAP_hits"] == json.loads((tmp_path / "figures.json").read_text())["mAP_hits"]
    assert (tmp_path / "runs" / "pretrained_walkers" / "report.html").stat().st_size > 10_000


def test_it_serves_as_first_weights() -> None:
    checkpoint, _ = find_checkpoint(WALKERS)
    config: Config = checkpoint.config
    taken = take_initial_weights(build_network(config, checkpoint.classes), WALKERS)
    assert taken.sha256 == checkpoint.weights_sha256
