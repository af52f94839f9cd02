"""`maskreid doctor`, `maskreid init`, and the demo outside of a checkout: what a new user runs first."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from market import write_market
from maskreid_dist.cli import carried, demo, doctor
from maskreid_dist.cli.app import app
from maskreid_dist.data.batches import make_plan, open_recipe_shards
from maskreid_dist.recipe import load_recipe
from maskreid_shards import convert_market1501

ROOT = Path(__file__).parent.parent


def maskreid(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.output


def findings(status: int = 0) -> dict[str, dict[str, str]]:
    found = json.loads(maskreid("doctor", "--json", status=status))["findings"]
    return {one["subject"]: one for one in found}


class Usage(NamedTuple):
    free: int


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine that runs the tests nothing is asked: room enough, and no other checkout on the path."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(8 << 40))
    other = {Path(part or ".").resolve() for part in sys.path if _holds_ours(part)} - {
        ROOT,
        ROOT / "kernels",
        ROOT / "shards",
    }
    monkeypatch.setattr(sys, "path", [part for part in sys.path if Path(part or ".").resolve() not in other])


def _holds_ours(folder: str) -> bool:
    return any((Path(folder or ".") / module / "__init__.py").is_file() for module in doctor.OURS.values())


def test_doctor_says_what_is_there() -> None:
    import torch

    found = findings()
    assert torch.__version__.startswith(found["torch"]["text"])
    assert "gloo" in found["backends"]["text"]
    assert f"{len(os.sched_getaffinity(0))} of" in found["processors"]["text"]
    said = maskreid("doctor")
    assert all(subject in said for subject in found)


def test_doctor_finds_a_small_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(folder: Path) -> Usage:
        return Usage(64 << 20 if str(folder) == "/dev/shm" else 8 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = findings(status=1)
    assert found["/dev/shm"]["level"] == "problem" and "--shm-size" in found["/dev/shm"]["text"]
    assert found["disk here"]["level"] == "ok"


def test_doctor_finds_copies_and_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "maskreid_kernels").mkdir()
    (tmp_path / "maskreid_kernels" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "EXTRAS", {"ghosts": ("no_such_module",)})
    found = findings(status=1)
    assert str(tmp_path) in found["several copies"]["text"]
    assert found["no-such-package"]["level"] == "problem"
    assert found["ghosts"] == {"subject": "ghosts", "text": "needs no_such_module", "level": "note"}


def test_the_shell_completes_commands_and_options() -> None:
    program = "import sys; sys.argv = ['maskreid']; from maskreid_dist.cli.app import main; main()"
    for words, expected in (("maskreid ev", "evaluate"), ("maskreid evaluate --camera-p", "--camera-pairs")):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        asked |= {"_MASKREID_COMPLETE": "complete_bash", "PYTHONPATH": os.pathsep.join(sys.path)}
        variables = {**os.environ, **asked}
        ran = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
        assert ran.stdout.split() == [expected], ran.stderr


def test_doctor_finds_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it fails
    found = findings(status=1)
    assert found["torchvision"]["level"] == "problem" and "one index" in found["torchvision"]["text"]


@pytest.mark.parametrize("ranks", [1, 4])
def test_init_writes_a_recipe_that_trains(tmp_path: Path, ranks: int) -> None:
    recipe = tmp_path / "first.toml"
    said = maskreid("init", ROOT / "shards" / "walkers", recipe, "--ranks", ranks)
    assert ("deepspeed" in said) == (ranks > 1)
    config = load_recipe(recipe, ())
    shards = open_recipe_shards(config.data)
    make_plan(shards.split("train"), config.batch, config.seed, ranks)  # raises where they do not fit
    assert config.name == "first" and config.batch.identities == 16 * ranks and config.batch.images == 4
    assert config.run.evaluate_every > 0
    text = recipe.read_text()
    assert f"{len(shards.split('train').identities)} identities" in text
    assert "is there already" in maskreid("init", ROOT / "shards" / "walkers", recipe, status=2)
    maskreid("init", ROOT / "shards" / "walkers", recipe, "--force")


def test_init_follows_small_sets(tmp_path: Path) -> None:
    convert_market1501(write_market(tmp_path / "src"), tmp_path / 'a "quoted" name')
    recipe = tmp_path / "small.toml"
    maskreid("init", tmp_path / 'a "quoted" name', recipe)
    config = load_recipe(recipe, ())
    split = open_recipe_shards(config.data).split("train")
    named = [pid for pid in split.identities.tolist() if pid > 0]
    assert config.batch.identities == min(16, len(named))
    assert "nowhere" in maskreid("init", tmp_path / "nowhere", tmp_path / "x.toml", status=2)
    assert not (tmp_path / "x.toml").exists()
    assert "a batch needs two" in maskreid(
        "init", tmp_path / 'a "quoted" name', tmp_path / "x.toml", "--ranks", 500, status=2
    )


def test_the_demo_finds_the_shards_of_its_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = demo.own_recipe()
    assert recipe == ROOT / "launch" / "recipes" / "walkers_demo.toml"
    monkeypatch.chdir(ROOT)
    assert demo.with_shards(recipe, ["seed=2"], None) == ["seed=2"]
    monkeypatch.chdir(tmp_path)
    assert demo.with_shards(recipe, ["seed=2"], None) == [
        "seed=2",
        f"data.shards={ROOT / 'shards' / 'walkers'}",
    ]
    assert demo.with_shards(recipe, [], "some") == [f"data.shards={tmp_path / 'some'}"]
    assert demo.with_shards(recipe, [], "https://host/s") == ["data.shards=https://host/s"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no checkout: the folder is returned."""
    monkeypatch.chdir(tmp_path)
    for module in (demo, carried):
        monkeypatch.setattr(module, "CHECKOUT", tmp_path / "site-packages")
    return tmp_path


def test_an_installed_demo_says_what_brings_its_shards(installed: Path) -> None:
    assert demo.own_recipe() == demo.COPY
    for command in (("demo",), ("demo", "--pretrained"), ("bench", "mixing")):
        said = maskreid(*command, status=2)
        assert "pip install 'maskreid-dist[walkers]'" in said and "--shards DIR" in said
        assert said.count("\n") == 1 and list(installed.iterdir()) == []
    assert "none" in maskreid("demo", "--shards", "none", status=2)
    said = maskreid("demo", "--set", "data.shards=elsewhere", status=2)
    assert "elsewhere: no manifest.json" in said
    assert findings()["walkers (the demo's data)"]["level"] == "note"


def test_an_installed_demo_takes_the_shards_of_their_distribution(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = installed / "packages" / "maskreid_walkers"
    shutil.copytree(ROOT / "shards" / "walkers", place, copy_function=os.link)
    monkeypatch.syspath_prepend(str(place.parent))
    assert demo.with_shards(demo.own_recipe(), ["seed=2"], None) == ["seed=2", f"data.shards={place}"]
    config = load_recipe(demo.own_recipe(), demo.with_shards(demo.own_recipe(), (), None))
    assert len(open_recipe_shards(config.data).split("gallery")) == 1844
    assert json.loads(maskreid("bench", "mixing", "--epochs", 2, "--json"))["rows"]
    assert findings()["walkers (the demo's data)"]["text"] == str(place)
