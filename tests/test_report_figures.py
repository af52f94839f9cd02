"""What the report draws: distances against a loop over pairs, principal components, activation maps."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskreid_dist.config import Config
from maskreid_dist.evaluation import report_figures
from maskreid_dist.evaluation.activations import drawn, responses
from maskreid_dist.evaluation.calibration import calibrate
from maskreid_dist.evaluation.evaluate import Ranked
from maskreid_dist.evaluation.labels import Labels
from maskreid_dist.evaluation.ranked_pictures import chosen_queries, mask_text
from maskreid_dist.evaluation.report_facts import loss_text, recipe_json
from maskreid_dist.evaluation.report_figures import distances, embedding_map, principal_components
from maskreid_dist.model import build_network
from maskreid_dist.recipe import load_recipe, validate
from maskreid_dist.report.html import Distances
from maskreid_dist.retrieval import evaluate_retrieval
from maskreid_shards import SourceNames
from test_calibration import people

RECIPE = Path(__file__).parent.parent / "launch" / "recipes" / "walkers_demo.toml"
SMALL = [
    "data.height=36",
    "data.width=14",
    "data.resize_height=40",
    "data.resize_width=16",
    "model.width=0.1",
]


def test_distances_are_those_of_a_loop_over_pairs() -> None:
    rows, pids, camids = people(9, 1, each=4, cameras=2)
    pids[:3] = 0
    found = distances(rows, pids, camids, None)
    assert isinstance(found, Distances)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.combinations(range(len(rows)), 2):
        if pids[i] and pids[j] and camids[i] != camids[j]:
            kinds[bool(pids[i] == pids[j])].append(1 - float(unit[i] @ unit[j]))
    for share, kind in ((found.same, kinds[True]), (found.other, kinds[False])):
        counts, _ = np.histogram(kind, found.edges)
        assert counts.sum() == len(kind)
        assert np.abs(np.array(share) - counts / len(kind)).sum() < 0.02  # a pair on an edge may round over
    assert f"{len(kinds[True])} pairs of one person and {len(kinds[False])} of two" in found.note
    assert found.threshold is None and "Not calibrated" in found.note


def test_lists_of_a_camera_have_its_owners_name() -> None:
    rows, pids, camids = people(9, 1, each=4, cameras=3)
    ids = pids, camids
    shown = Ranked("x", rows, rows, evaluate_retrieval(rows, *ids, rows, *ids))
    names = SourceNames(cameras={2: "entrance"})
    chosen = chosen_queries(shown, Labels(ids, ids), names, 1, 48)
    assert {"hardest", "hardest of camera entrance (2)"} <= set(chosen)
    for heading, rows_of in chosen.items():
        if heading.endswith("entrance (2)"):
            assert camids[rows_of].tolist() == [2]
    # Keys stand for cameras where there are none: no list of each.
    assert set(chosen_queries(shown, Labels(ids, ids, "none"), names, 1, 48)) == {
        "hardest",
        "median",
        "easiest",
    }


def test_the_calibrated_threshold_is_marked() -> None:
    rows, pids, camids = people(40, 2)
    known = calibrate(rows, pids, camids, 0.01, weights_sha256="ab", source="here")
    found = distances(rows, pids, camids, known)
    assert isinstance(found, Distances)
    assert found.threshold == 1 - known.overall.threshold
    assert f"here {100 * known.overall.false_match_rate:.3g} % of other" in found.note


def test_many_images_and_nobody_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pids, camids = people(20, 3)
    monkeypatch.setattr(report_figures, "MOST_IMAGES", 80)
    found = distances(rows, pids, camids, None)
    assert isinstance(found, Distances) and "of 10 of 20 persons" in found.note
    why = distances(rows[:2], np.array([1, 2]), np.array([1, 2]), None)
    assert isinstance(why, str) and why.startswith("No distances of pairs")


def test_principal_components_are_those_of_the_covariance() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 6)) * np.array([5, 3, 1, 1, 1, 1])
    found, explained = principal_components(rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    expected = (rows - rows.mean(axis=0)) @ vectors[:, [-1, -2]]
    assert np.allclose(np.abs(found), np.abs(expected))
    assert explained == pytest.approx(values[-2:].sum() / values.sum())
    assert principal_components(np.ones((3, 4)))[1] == 1.0


def test_the_map_names_persons_with_most_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pids, _ = people(20, 4)
    pids[:4] = 7
    found = embedding_map(rows, pids, [f"key{n}" for n in range(len(pids))], SourceNames())
    assert next(iter(found.persons)) == "person 7" and len(found.persons["person 7"]) == 12
    assert len(found.points) + sum(map(len, found.persons.values())) == len(rows)
    assert found.persons["person 7"][0][2] == "key0"
    monkeypatch.setattr(report_figures, "MOST_POINTS", 100)
    fewer = embedding_map(rows, pids, [""] * len(pids), SourceNames({7: "anna"}))
    assert next(iter(fewer.persons)) == "person anna (7)"
    assert len(fewer.points) + sum(map(len, fewer.persons.values())) == 100


@pytest.mark.parametrize("streams", ['["raw", "masked"]', '["masked"]'])
def test_maps_of_the_streams(streams: str) -> None:
    config: Config = load_recipe(RECIPE, [*SMALL, f"model.streams={streams}"])
    torch.manual_seed(0)
    network = build_network(config, 0).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 16, 3), np.uint8))
    half = np.zeros((40, 16), np.uint8)
    half[:20] = 255
    (found,) = responses(network, config, [(image, Image.fromarray(half))])
    names = [name for name in ("raw", "masked") if f'"{name}"' in streams]
    assert list(found.maps) == [*names, "low", "high"]
    assert found.maps["masked"].shape == (18, 7)
    for energy in found.maps.values():
        assert 0 <= energy.min() and energy.max() == 1
    # The masked stream sees no pixel of the lower half: its map is even there, away from edges.
    assert np.ptp(found.maps["masked"][12:16, 2:5]) < 1e-6
    assert np.ptp(found.maps["masked"][2:6, 2:5]) > 1e-3
    pictures = drawn(found)
    assert [caption.split(":")[0] for _, caption in pictures] == [
        "image", "mask-cut", *(f"{name} stream" for name in names), "low, both", "high, both"
    ]  # fmt: skip
    assert pictures[1][1] == "mask-cut: person 50 %"
    assert {picture.size for picture, _ in pictures} == {(14, 36)}


def test_what_trained_it_in_words() -> None:
    config = load_recipe(RECIPE, ["loss.identity_weight=0.5"])
    assert loss_text(config.loss) == (
        "ranking, margin 0.15, pull 2.0, negatives violating; plus 0.5 x softmax of the identities, "
        "labels smoothed by 0.1"
    )
    alone = ["loss.identity_weight=0.0", "loss.label_smoothing=0.0"]
    other = load_recipe(RECIPE, ["loss.name=batch_hard", *alone, "loss.memory=3"])
    assert loss_text(other.loss) == (
        "batch_hard, margin 0.15, distance euclidean; plus 1 x the same over 3 past steps"
    )
    values = config.model_dump(mode="json")
    values["data"]["shards"] = "https://me:secret@host/shards?token=secret"
    assert "secret" not in recipe_json(validate(values, "here"))


def test_masks_in_words() -> None:
    mask = np.zeros((10, 10), np.uint8)
    assert mask_text(mask) == "empty: 0 % person"
    mask[2:8, 2:8] = 255
    assert mask_text(mask) == "no defect: 36 % person"
