"""The colour-histogram baselines against a slow count, and against the figures in the README of the data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskreid_dist.evaluation.evaluate import rank_histograms
from maskreid_dist.evaluation.histogram import HISTOGRAM_BASELINES, histogram_features
from maskreid_shards import open_shards

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"


def test_against_a_pixel_by_pixel_count() -> None:
    generator = np.random.default_rng(1)
    image = Image.fromarray(generator.integers(0, 256, (24, 10, 3), dtype=np.uint8))
    mask = Image.fromarray((generator.random((24, 10)) < 0.6).astype(np.uint8) * 255)
    hsv, inside = np.array(image.convert("HSV")), np.array(mask) == 255
    expected = np.zeros((3, 256))
    for y in range(24):
        for x in range(10):
            if inside[y, x]:
                h, s, v = (int(c) for c in hsv[y, x])
                expected[y // 8, (h // 16) * 16 + (s // 64) * 4 + v // 64] += 1
    expected = np.sqrt(expected / expected.sum(axis=1, keepdims=True)).ravel() / np.sqrt(3)
    found = histogram_features([image], [mask], stripes=3)
    assert found.shape == (1, 768)
    assert np.allclose(found[0], expected, atol=1e-6)


def test_empty_mask_is_zero_and_bad_masks_are_named() -> None:
    image, empty = Image.new("RGB", (8, 12)), Image.new("L", (8, 12))
    assert not histogram_features([image], [empty], stripes=2).any()
    with pytest.raises(ValueError, match="one mask an image"):
        histogram_features([image], [], stripes=2)
    with pytest.raises(ValueError, match="image 0"):
        histogram_features([image], [Image.new("L", (4, 4))], stripes=2)


def test_the_figures_of_the_datas_readme() -> None:
    published = {1: (7.1, 12.5), 6: (7.9, 14.2), "mask": (24.6, 38.2)}
    shards = open_shards(WALKERS)
    rows = rank_histograms(shards, HISTOGRAM_BASELINES)
    assert [row.name for row in rows] == [baseline.name for baseline in HISTOGRAM_BASELINES]
    for row, (mean_ap, rank1) in zip(rows, published.values(), strict=True):
        result = row.result
        assert 100 * result.mAP_hits == pytest.approx(mean_ap, abs=1.0)
        assert 100 * result.rank(1) == pytest.approx(rank1, abs=1.5)
