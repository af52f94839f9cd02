"""`maskreid calibrate` from a run to what it is for: probabilities of a search, and a warning where an
evaluation has cameras that it does not know."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints import write_run
from market import write_pair
from maskreid_dist.evaluation.calibration import LEVEL
from maskreid_dist.evaluation.calibration_check import check_lines, check_splits
from maskreid_dist.evaluation.calibration_file import calibration_path, load
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_dist.retrieval.verification import BINS, count_similarities, named_images
from maskreid_shards import convert_market1501
from program import run
from test_calibration import fitted, people

PERSONS = 16


def coloured(pid: int, number: int) -> bytes:
    """A person is a colour of clothes: an untrained network tells them apart."""
    rng = np.random.default_rng(pid)
    rows = np.repeat(rng.integers(30, 226, (2, 1, 3)), 16, axis=0) * np.ones((1, 16, 1))
    rows = rows + np.random.default_rng([pid, number]).normal(0, 12, rows.shape)
    buffer = io.BytesIO()
    Image.fromarray(rows.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_coloured(folder: Path, cameras: tuple[int, int]) -> Path:
    for pid, (number, camera) in itertools.product(range(1, PERSONS + 1), enumerate(cameras * 2)):
        split = "query" if number == 0 else "gallery"
        path = write_pair(folder / "market", split, f"{pid:04d}_c{camera}s1_{number:06d}_01", pid)
        path.write_bytes(coloured(pid, number))
    for number in range(2):
        write_pair(folder / "market", "train", f"0900_c1s1_{number:06d}_01", number)
    convert_market1501(folder / "market", folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run, its shards, and what the command said."""
    folder = tmp_path_factory.mktemp("calibrated")
    shards = write_coloured(folder, (1, 2))
    path = write_run(folder / "run")
    asked = ["calibrate", path, shards, "--false-match-rate", "0.05", "--check-splits", "3"]
    status, said = run(*asked)
    assert status == 0, said
    return path, shards, said


def test_it_is_kept_with_the_checkpoint(calibrated: tuple[Path, Path, str]) -> None:
    path, shards, said = calibrated
    checkpoint = find_checkpoint(path)[0]
    kept = load(calibration_path(checkpoint.path))
    assert kept.weights_sha256 == checkpoint.weights_sha256 and kept.wanted == 0.05
    assert (kept.persons, kept.images, kept.source) == (PERSONS, 4 * PERSONS, f"{shards} (query, gallery)")
    assert f"{kept.overall.threshold:.4f}" in said and f"{PERSONS} persons, {4 * PERSONS} images" in said
    assert f"calibration: {calibration_path(checkpoint.path)}" in said
    assert "3 splits, fitted on half of the persons for 5 % false matches" in said


def test_a_search_prints_its_probabilities(calibrated: tuple[Path, Path, str], tmp_path: Path) -> None:
    path, shards, _ = calibrated
    assert run("embed", path, shards, tmp_path / "gallery")[0] == 0
    (tmp_path / "one.jpg").write_bytes(coloured(3, 9))
    asked = ["search", path, tmp_path / "gallery", tmp_path / "one.jpg", "--top", str(3 * PERSONS)]
    found = json.loads(run(*asked, "--json")[1])[0]["matches"]
    kept = load(calibration_path(find_checkpoint(path)[0].path))
    for match in found:
        assert match["probability"] == kept.probability(match["similarity"])
    assert found[0]["pid"] == 3 and found[0]["probability"] > 0.5 > found[-1]["probability"]
    status, said = run(*asked)
    assert status == 0 and f"{found[0]['probability']:.3f}" in said and "no probabilities" not in said


def test_an_evaluation_warns_of_other_cameras(calibrated: tuple[Path, Path, str], tmp_path: Path) -> None:
    path, shards, _ = calibrated
    status, said = run("evaluate", path, shards)
    assert status == 0 and "warning" not in said
    status, said = run("evaluate", path, write_coloured(tmp_path, (1, 7)))
    assert status == 0
    assert "warning: not calibrated for the cameras 1 and 7: the overall threshold is a guess there" in (
        " ".join(said.split())
    )


def test_checks_are_those_of_a_loop_over_halves() -> None:
    rows, pids, camids = people(60, 3, cameras=3)
    pids[:5] = 0
    found = check_splits(rows, pids, camids, 0.02, 3, source="here", seed=4)
    rng, persons = np.random.default_rng(4), np.unique(pids[pids > 0])
    for number, check in enumerate(found):
        half = np.isin(pids, rng.permutation(persons)[:30])
        other = ~half & (pids > 0)
        expected = fitted((rows[half], pids[half], camids[half]), 0.02)
        if number == 0:  # the first has the default seed of the bootstrap
            assert check.overall.interval == expected.overall.false_match_interval
        assert check.overall.threshold == expected.overall.threshold
        counts = count_similarities(named_images(rows[other], pids[other], camids[other]))
        edge = round((expected.overall.threshold + 1) * BINS / 2)
        assert check.overall.rate == counts.rates(0, edge)[0]
        assert [one.cameras for one in check.camera_pairs] == [(1, 2), (1, 3), (2, 3)]
    lines = check_lines(found, 0.02)
    inside = sum(check.overall.inside for check in found)
    assert lines[0].endswith(f"within the {100 * LEVEL:g} % interval in {inside} of 3")
    assert lines[-1].endswith("of 9")
