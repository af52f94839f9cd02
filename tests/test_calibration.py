"""Thresholds for "same person?": rates against a loop over pairs, intervals against other persons."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maskreid_dist.errors import RetrievalError, UserError
from maskreid_dist.evaluation.calibration import Calibration, calibrate, doubts, fit_log_odds
from maskreid_dist.evaluation.calibration_file import load, save
from maskreid_dist.retrieval.verification import (
    BINS,
    count_similarities,
    named_images,
    similarity,
    true_match_rates,
)

Array = NDArray[Any]


def people(persons: int, seed: int, each: int = 8, cameras: int = 4, noise: float = 0.9) -> tuple[Array, ...]:
    """Features with a camera's own shift, pids from 1, camids from 1."""
    rng = np.random.default_rng(seed)
    centre, shift = rng.standard_normal((persons, 32)), 0.3 * rng.standard_normal((cameras, 32))
    pids = np.repeat(np.arange(1, persons + 1), each)
    camids = rng.integers(1, cameras + 1, len(pids))
    rows = centre[pids - 1] + shift[camids - 1] + noise * rng.standard_normal((len(pids), 32))
    return rows.astype(np.float32), pids, camids


def fitted(data: tuple[Array, ...], rate: float = 0.01) -> Calibration:
    rows, pids, camids = data
    return calibrate(rows, pids, camids, rate, weights_sha256="ab", source="test")


@pytest.mark.parametrize("cameras", [1, 3])
def test_counts_are_those_of_a_loop_over_pairs(cameras: int) -> None:
    rows, pids, camids = people(12, 0, each=3, cameras=cameras)
    pids[:2], pids[2] = 0, -1  # nobody in particular
    images = named_images(rows, pids, camids)
    found = count_similarities(images)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.zeros((2, len(images.groups)), int)
    at_least = np.zeros_like(expected)
    for i, j in itertools.combinations(range(len(rows)), 2):
        if pids[i] < 1 or pids[j] < 1 or (cameras > 1 and camids[i] == camids[j]):
            continue
        kind = int(pids[i] == pids[j])
        pair = (min(camids[i], camids[j]), max(camids[i], camids[j]))
        for group in {0, images.groups.index(pair) if cameras > 1 else 0}:
            expected[kind, group] += 1
            at_least[kind, group] += unit[i] @ unit[j] >= 0.25
    edge = round(1.25 * BINS / 2)
    assert similarity(edge) == 0.25
    for kind, counts in enumerate((found.impostor_GB, found.genuine_GB)):
        assert counts.sum(axis=1).tolist() == expected[kind].tolist()
        assert counts[:, edge:].sum(axis=1).tolist() == at_least[kind].tolist()
    for group in range(len(images.groups)):
        threshold = found.threshold(group, 0.1)
        assert found.rates(group, threshold)[0] <= 0.1
        assert threshold == 0 or found.rates(group, threshold - 1)[0] > 0.1


def test_the_rate_of_other_persons_lies_within_the_interval() -> None:
    """Fitted on half of the persons, measured on the other half, 20 splits; and the interval is narrow."""
    rows, pids, camids = people(160, 1, cameras=2)
    inside, widths = 0, []
    for seed in range(20):
        chosen = np.isin(pids, np.random.default_rng(seed).permutation(160)[:80] + 1)
        overall = fitted((rows[chosen], pids[chosen], camids[chosen])).overall
        others = count_similarities(named_images(rows[~chosen], pids[~chosen], camids[~chosen]))
        rate = others.rates(0, round((overall.threshold + 1) * BINS / 2))[0]
        low, high = overall.false_match_interval
        inside += low <= rate <= high
        widths.append((high - low) / 0.01)
        assert overall.false_match_rate <= 0.01
    assert inside == 20
    assert max(widths) < 2  # of the rate itself


def test_an_interval_that_took_pairs_as_independent_would_be_too_narrow() -> None:
    """Persons that resemble each other in groups: the pairs' own standard error is far from enough."""
    rows, pids, camids = people(160, 2)
    looks = np.random.default_rng(3).standard_normal((8, 32))
    rows = rows + 0.8 * looks[pids % 8].astype(np.float32)
    chosen = pids % 16 < 8
    overall = fitted((rows[chosen], pids[chosen], camids[chosen])).overall
    naive = 2.6 * np.sqrt(0.01 * 0.99 / overall.impostors)
    low, high = overall.false_match_interval
    assert high - low > 4 * naive


def test_probabilities_are_those_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.6, 0.1, 200_000), rng.normal(0.2, 0.1, 1_000_000)
    counts = [np.histogram(v, bins=BINS, range=(-1, 1))[0] for v in (genuine, impostor)]
    slope, offset = fit_log_odds(*counts)
    # Two normal distributions of one width: linear log odds, (0.6 - 0.2) / 0.01 steep, zero between.
    assert slope == pytest.approx(40, rel=0.03)
    assert -offset / slope == pytest.approx(0.4, abs=0.005)
    calibration = fitted(people(40, 4))
    assert calibration.probability(0.99) > 0.99 > 0.5 > calibration.probability(0.0)
    assert calibration.probability(0.5, prior=0.01) < calibration.probability(0.5)
    with pytest.raises(UserError, match="nothing to calibrate"):
        fit_log_odds(counts[1], counts[0])


def test_cameras_have_thresholds_of_their_own() -> None:
    rows, pids, camids = people(100, 5)
    rows[camids == 1] += 1.5  # camera 1 tints all it sees
    rows[camids == 2] += 1.5
    calibration = fitted((rows, pids, camids))
    own = {t.cameras: t.threshold for t in calibration.camera_pairs}
    assert max(own, key=lambda pair: own[pair]) == (1, 2)
    assert set(own) == set(itertools.combinations(range(1, 5), 2)) and not calibration.too_few
    few = fitted((rows[:80], pids[:80], camids[:80]), rate=0.02)
    assert few.too_few and few.knows(*few.too_few[0]) and not few.knows(1, 9)


def test_what_lies_outside_is_named() -> None:
    rows, pids, camids = people(100, 6)
    half = pids <= 50
    calibration = fitted((rows[half], pids[half], camids[half]))
    assert doubts(calibration, rows[~half], pids[~half], camids[~half]) == []
    strange = camids.copy()
    strange[camids == 4] = 9
    lines = doubts(calibration, rows[~half], pids[~half], strange[~half])
    assert "not calibrated for the cameras 1 and 9, 2 and 9, 3 and 9" in lines[0]
    fog = rows[~half] + 1.0
    lines = doubts(calibration, fog, pids[~half], camids[~half])
    assert lines[0].startswith("all pairs: ") and "outside" in lines[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r, p, c: (r, p, c, 1.5), "between 0 and 1"),
        (lambda r, p, c: (r, p, c, 1e-6), "ask for a higher rate"),
        (lambda r, p, c: (r, np.ones_like(p), c, 0.01), "nothing to compare"),
        (lambda r, p, c: (r[::8], p[::8], c[::8], 0.01), "nothing to compare"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(change: Any, word: str) -> None:
    with pytest.raises((UserError, RetrievalError), match=word) as caught:
        *data, rate = change(*people(20, 7))
        fitted(tuple(data), rate)
    assert "\n" not in str(caught.value)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    calibration = fitted(people(40, 8), rate=0.02)
    save(tmp_path / "c.json", calibration)
    assert load(tmp_path / "c.json") == calibration
    values = json.loads((tmp_path / "c.json").read_text())
    for spoilt in (
        "[" * 10_000,
        "{}",
        json.dumps(values | {"format": "x"}),
        json.dumps(values | {"overall": 3}),
        json.dumps(values | {"slope": "steep"}),
        json.dumps({k: v for k, v in values.items() if k != "persons"}),
    ):
        (tmp_path / "c.json").write_text(spoilt)
        with pytest.raises(UserError, match="calibrate again"):
            load(tmp_path / "c.json")
    with pytest.raises(UserError, match="missing"):
        load(tmp_path / "none.json")


def test_true_match_rates_are_those_of_sorted_scores() -> None:
    rows, pids, camids = people(30, 9, cameras=2)
    found = count_similarities(named_images(rows, pids, camids))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = unit @ unit.T
    pairs = np.triu(camids[:, None] != camids, 1)
    same = pids[:, None] == pids
    impostor, genuine = np.sort(scores[pairs & ~same]), scores[pairs & same]
    for rate, value in zip((0.1, 0.01), true_match_rates(found, (0.1, 0.01)), strict=True):
        threshold = impostor[len(impostor) - int(rate * len(impostor)) - 1]
        assert value == pytest.approx((genuine > threshold).mean(), abs=0.01)
    assert true_match_rates(found, (1e-9,)) == [None]
