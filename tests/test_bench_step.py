"""`maskreid bench step`: a recipe's step over noise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskreid_dist.bench.step import StepCost, noise, promises
from maskreid_dist.recipe import load_recipe
from maskreid_dist.run_directory import PHASES
from program import run

RECIPE = """
name = "tiny"
[data]
shards = "nowhere"
height = 36
width = 14
resize_height = 36
resize_width = 14
[model]
width = 0.125
embedding_dim = 16
[loss]
identity_weight = 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_noise_has_the_recipes_size_and_images_an_identity(recipe: Path) -> None:
    batch = noise(load_recipe(recipe), 12)
    assert batch.image_B3HW.shape == (12, 3, 36, 14) and batch.mask_B1HW.shape == (12, 1, 36, 14)
    assert batch.pids_B.tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert set(batch.mask_B1HW.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("rows", [4, 10])
def test_a_batch_of_whole_identities(recipe: Path, rows: int) -> None:
    status, said = run("bench", "step", recipe, "--batch", rows)
    assert status == 2
    assert f"--batch {rows}: use a multiple of the recipe's 4 images of an identity, 8 at least" in said


def test_the_loss_s_share_is_promised_of_large_batches_on_a_gpu() -> None:
    costs = [
        StepCost(rows, 0, 100.0, 10.0 * rows, 0.02, peak_gb, dict.fromkeys(PHASES, 0.0))
        for rows, peak_gb in ((64, 1.0), (4096, None), (4096, 9.0))
    ]
    (promise,) = promises(costs)
    assert promise.kept and promise.value == pytest.approx(2.0) and "4096" in promise.text


def test_phases_are_those_of_a_step(recipe: Path, tmp_path: Path) -> None:
    """Through DeepSpeed, in a process of its own: it joins a process group."""
    output = tmp_path / "step.csv"
    command = [sys.executable, "-m", "maskreid_dist", "bench", "step", str(recipe), "--batch", "8"]
    command += ["--batch", "12", "--seconds", "0", "--json", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["batch"] for row in found["rows"]] == [8, 12] and found["promises"] == []
    for row in found["rows"]:
        assert row["step_ms"] == pytest.approx(sum(row[f"{name}_ms"] for name in PHASES))
        assert row["images_s"] == pytest.approx(1000 * row["batch"] / row["step_ms"])
        assert 0 < row["loss_share"] < 1 and row["forward_ms"] > 0 and row["peak_gb"] is None
    assert len(output.read_text().splitlines()) == 3
