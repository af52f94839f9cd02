"""`maskreid evaluate --split`: shards without query and gallery, each image a query among the others."""

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maskreid_dist.evaluation.embed import embed_split
from maskreid_dist.evaluation.evaluate import load_network
from maskreid_dist.evaluation.labels import all_images, split_labels
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_shards import ShardSet, open_shards
from program import run
from test_retrieval import slow

WALKERS = Path("pretrained:walkers")


@pytest.fixture(scope="module")
def own(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a folder per person, made of the queries and the gallery: train is their only split."""
    folder = tmp_path_factory.mktemp("own")
    shards = open_shards(converted)
    for name in ("query", "gallery"):
        split = shards.split(name)
        for raw in split.read_many(np.arange(len(split))):
            if raw.pid > 0:
                person = folder / "crops" / f"person{raw.pid}"
                person.mkdir(parents=True, exist_ok=True)
                stem = f"c{raw.camid}_{raw.key.rpartition('/')[2]}"
                (person / f"{stem}.jpg").write_bytes(raw.image)
    crops, options = folder / "crops", ("--camera", r"c(\d+)_", "--on-bad-mask", "full")
    status, said = run("convert", "folder", crops, folder / "shards", *options)
    assert status == 0, said
    return folder / "shards"


def features(shards: ShardSet) -> NDArray[np.float32]:
    checkpoint, _ = find_checkpoint(WALKERS)
    split, config = shards.split("train"), checkpoint.config
    return embed_split(load_network(checkpoint).eval(), split, config, torch.device("cpu"))


@pytest.mark.parametrize("cameras", ["labels", "none"])
def test_figures_are_those_of_a_loop(own: Path, cameras: str, tmp_path: Path) -> None:
    shards = open_shards(own)
    split = shards.split("train")
    found = features(shards).astype(np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    camids = split.camids if cameras == "labels" else np.arange(len(split))  # only itself is left out
    cmc, hits, trapezoid, inp, valid = slow(1 - found @ found.T, split.pids, camids, split.pids, camids)
    report = tmp_path / "report.html"
    status, said = run(
        *("evaluate", WALKERS, own, "--split", "train", "--cameras", cameras, "--report", report, "--json")
    )
    assert status == 0, said
    figures = json.loads(said)
    assert figures["each_against_the_others_of"] == "train" and figures["valid_queries"] == valid
    wanted = {"mAP_hits": hits, "mAP_trapezoid": trapezoid, "mINP": inp, "rank1": cmc[0], "rank5": cmc[4]}
    assert {key: figures[key] for key in wanted} == {
        key: pytest.approx(100 * value, abs=0.006) for key, value in wanted.items()
    }
    assert f"train {split.keys[0].decode()}" in report.read_text()  # of the embedding map


def test_people_are_called_as_their_owner_calls_them(own: Path, tmp_path: Path) -> None:
    names = open_shards(own).names
    number, name = next(iter(names.persons.items()))
    assert re.fullmatch(r"person\d+", name) and names.person(number) == f"person {name} ({number})"
    assert (names.person(0), names.person(-1), names.camera(2)) == ("distractor", "junk", "2")
    report, gallery = tmp_path / "report.html", tmp_path / "gallery"
    assert run("evaluate", WALKERS, own, "--split", "train", "--report", report)[0] == 0
    persons = {int(pid) for pid in re.findall(r"person person\d+ \((\d+)\)", report.read_text())}
    assert persons == set(names.persons)
    assert not re.search(r"person \d+[,<]", report.read_text())
    assert run("embed", WALKERS, own, gallery, "--split", "train")[0] == 0
    picture = next((own.parent / "crops" / name).iterdir())
    status, said = run("search", WALKERS, gallery, picture, "--json", "--html", report)
    first = json.loads(said)[0]["matches"][0]
    assert status == 0 and (first["pid"], first["person"]) == (number, f"{name} ({number})")
    assert f"person {name} ({number})<br>" in report.read_text()
    assert f" {name} ({number}) " in run("search", WALKERS, gallery, picture)[1]


def test_pairs_are_counted_once(own: Path) -> None:
    status, said = run(
        *("evaluate", WALKERS, own, "--split", "train", "--cameras", "none", "--verification", "--json")
    )
    assert status == 0, said
    shares = json.loads(said)["true_match_rate_at_false_match_rate"]
    shards = open_shards(own)
    unit, pids = features(shards), shards.split("train").pids
    pairs = [(float(unit[a] @ unit[b]), pids[a] == pids[b]) for a, b in combinations(range(len(pids)), 2)]
    others = sorted((s for s, same in pairs if not same), reverse=True)
    threshold = others[int(0.1 * len(others))]  # as many lie above it
    genuine = [s for s, same in pairs if same]
    share = 100 * np.mean([s > threshold for s in genuine])
    assert shares["10"] == pytest.approx(share, abs=100 / len(genuine) + 0.006)  # a bin's width


def test_all_images_are_those_of_both_splits_or_each_once(converted: Path) -> None:
    shards = open_shards(converted)
    rows = [np.eye(len(shards.split(name)), 900, dtype=np.float32) for name in ("query", "gallery")]
    both = all_images(rows[0], rows[1], split_labels(shards, "labels"))
    assert len(both.camids) == len(both.pids) == len(both.features) == len(rows[0]) + len(rows[1])
    alone = shards.against_itself("gallery")
    assert alone.fingerprint != shards.fingerprint and alone.splits == ("query", "gallery")
    once = all_images(rows[1], rows[1], split_labels(alone, "labels"))
    assert np.array_equal(once.features, rows[1]) and len(once.pids) == len(rows[1])
    assert not all_images(rows[0], rows[1], split_labels(shards, "none")).camids.any()


def test_what_is_said_and_refused(own: Path, converted: Path) -> None:
    def refused(*arguments: Any) -> str:
        status, said = run("evaluate", WALKERS, *arguments)
        assert status == 2 and said.count("\n") == 1, said
        return said

    assert re.search("no split query and no gallery; --split train takes each", refused(own))
    assert "no split 'val'; there are" in refused(own, "--split", "val")
    for flag in (["--rerank"], ["--expand-queries", "2"]):
        assert "not --split" in refused(own, "--split", "train", *flag)
    status, said = run("evaluate", WALKERS, converted, "--split", "gallery", "--cameras", "none")
    assert status == 0 and "each image of gallery was a query among the others" in said, said


def test_the_network_has_seen_these_images(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import maskreid_dist.evaluation.evaluate as module

    found = module.checkpoint_of
    seen = open_shards(converted).split("train").fingerprint
    monkeypatch.setattr(module, "checkpoint_of", lambda *a: replace(found(*a), shards_fingerprint=seen))
    for split, trained in (("train", True), ("gallery", False)):
        status, said = run("evaluate", WALKERS, converted, "--split", split, "--cameras", "none")
        assert status == 0 and ("trained on these images" in said) == trained, said
