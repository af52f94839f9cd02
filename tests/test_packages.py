"""The distributions belong together, and their READMEs work as package pages."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import maskreid_dist
import wheels_alone

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "shards", ".")  # of code
WALKERS = "shards/walkers"


def project(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return found


def test_one_version_one_python_one_licence() -> None:
    kernels, shards, trainer = (project(folder) for folder in FOLDERS)
    assert kernels["version"] == shards["version"] == maskreid_dist.__version__
    assert f"\nversion: {maskreid_dist.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    for key in ("requires-python", "license"):
        assert kernels[key] == shards[key] == trainer[key]
    assert project(WALKERS)["version"] == maskreid_dist.__version__
    assert project(WALKERS)["requires-python"] == trainer["requires-python"]
    for folder in ("kernels", "shards"):  # each archive carries the licence, which is one
        assert (ROOT / folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_kernels_need_torch_and_triton_alone() -> None:
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in project("kernels")["dependencies"]]
    assert names == ["torch", "triton"]
    assert {"maskreid-kernels", "maskreid-shards"} <= {
        re.split(r"[^\w-]", requirement)[0] for requirement in project(".")["dependencies"]
    }


def test_the_package_carries_the_demos_recipe() -> None:
    copy = ROOT / "maskreid_dist" / "cli" / "demo.toml"
    assert copy.read_text() == (ROOT / "launch" / "recipes" / "walkers_demo.toml").read_text()


@pytest.mark.parametrize("folder", (*FOLDERS, WALKERS))
def test_links_of_a_package_page_are_absolute(folder: str) -> None:
    text = (ROOT / folder / project(folder)["readme"]).read_text()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_the_first_lines_of_the_kernels_run() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "kernels" / "README.md").read_text(), re.DOTALL)[:1]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["embeddings"].grad.abs().sum() > 0


def test_the_wheel_carries_the_pretrained_network_with_its_card() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    files = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    names = ("README.md", "manifest.json", "weights.safetensors")
    assert {f"maskreid_dist/pretrained/walkers/{name}" for name in names} <= files
    assert "maskreid_dist/README.md" not in files


def test_the_walkers_are_a_distribution_of_their_own_with_their_own_licences() -> None:
    """Its wheel is the shard folder, whole."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    files = {
        Path(file.path).relative_to(ROOT / WALKERS): file.distribution_path
        for file in wheel.WheelBuilder(str(ROOT / WALKERS)).recurse_included_files()
    }
    licences = {Path("LICENSE"), Path("LICENSE.masks")}  # among the wheel's metadata
    there = {path.relative_to(ROOT / WALKERS) for path in (ROOT / WALKERS).rglob("*") if path.is_file()}
    assert set(files) == there - licences - {Path("pyproject.toml")}
    assert all(name == f"maskreid_walkers/{path}" for path, name in files.items())
    about = project(WALKERS)
    assert about["license"] == "GPL-3.0-or-later AND CC0-1.0" and "dependencies" not in about
    assert {Path(name) for name in about["license-files"]} == licences
    named = [(ROOT / WALKERS / name).read_text() for name in about["license-files"]]
    assert "GNU GENERAL PUBLIC LICENSE" in named[0] and "CC0 1.0 Universal" in named[1]
    (extra,) = project(".")["optional-dependencies"]["walkers"]
    assert extra.startswith("maskreid-walkers>=")


def test_the_wheels_are_tried_with_every_python_that_is_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is tried takes minutes: CI, and make wheels-alone."""
    calls = []

    def tried(here: tuple[str, str], *words: object, links: bool, demo: bool, whole: bool) -> bool:
        calls.append((here[1], links, demo, whole))
        return True

    here = {"python3.12": ("python3.12", "3.12.1"), "python3.13": ("python3.13", "3.13.0")}
    monkeypatch.setattr(wheels_alone, "tried", tried)
    monkeypatch.setattr(wheels_alone, "interpreter", here.get)
    monkeypatch.setattr(wheels_alone, "wheels", list)
    names = [word for name in ("python3.9", *here) for word in ("--python", name)]
    assert wheels_alone.main([*names, "--quick"]) == 0
    assert calls == [("3.12.1", True, True, False), ("3.13.0", True, False, False)]
    assert capsys.readouterr().out == "python3.9: not here, passed over\n"
    assert wheels_alone.main([*names[2:4], "--whole"]) == 0 and calls[2:] == [("3.12.1", False, False, True)]
    assert wheels_alone.main(names[:2]) == 2  # nothing was tried
    assert wheels_alone.PYTHONS[0] == sys.executable and len(wheels_alone.PYTHONS) == 3
