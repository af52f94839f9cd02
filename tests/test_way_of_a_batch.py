"""The tool that prints which files a batch passes from shard to gradient."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import way_of_a_batch

TOOL = Path(way_of_a_batch.__file__)


def test_a_batch_goes_from_the_shards_through_the_network_to_the_loss() -> None:
    found = subprocess.run([sys.executable, TOOL], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    files = [words[1] for words in lines if words[0].isdigit() and words[1].endswith(".py")]
    assert [int(words[0]) for words in lines if words[0].isdigit()][:-1] == list(range(1, len(files) + 1))
    assert found.stdout.splitlines()[-1].startswith(f"{len(files)} files: ")
    headings = [words[0] for words in lines if len(words) == 1 and words[0].startswith("maskreid_")]
    assert headings[:4] == ["maskreid_dist", "maskreid_shards", "maskreid_dist", "maskreid_kernels"]
    assert all((TOOL.parent.parent / name).is_file() for name in files)
    order = (
        "shards/maskreid_shards/reading.py",
        "maskreid_dist/data/transforms.py",
        "maskreid_dist/model/network.py",
        "kernels/maskreid_kernels/ranking/__init__.py",
    )
    assert [name for name in files if name in order] == list(order)
    assert not [name for name in files if name.startswith(("tests/", "maskreid_dist/cli/"))]
    # One rank has nobody to agree with, no Triton program wants a preset, and constants were looked up a step
    # before.
    for name in ("agreement", "precision", "__init__"):
        assert f"kernels/maskreid_kernels/{name}.py" not in files


def test_what_is_installed_inside_the_checkout_is_not_the_projects(tmp_path: Path) -> None:
    installed, own = (
        tmp_path / ".venv/lib/python3.12/site-packages/torch/a.py",
        tmp_path / "maskreid_dist/a.py",
    )
    watch = way_of_a_batch.Watch(tmp_path)
    for path in (installed, own):
        path.parent.mkdir(parents=True)
        path.write_text("def entered():\n    pass\n")
    calls: list[dict[str, Callable[[], None]]] = []
    for path in (installed, own):
        calls.append({})
        exec(compile(path.read_text(), str(path), "exec"), calls[-1])
    watch.start()
    for names in calls:
        names["entered"]()
    watch.stop()
    assert list(watch.files) == ["maskreid_dist/a.py"]


def test_the_way_is_printed_in_order_with_a_heading_for_each_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    way_of_a_batch.print_way(["maskreid_dist/b.py", "kernels/maskreid_kernels/a.py", "maskreid_dist/a.py"])
    assert capsys.readouterr().out.splitlines() == [
        "maskreid_dist",
        "    1 maskreid_dist/b.py",
        "maskreid_kernels",
        "    2 kernels/maskreid_kernels/a.py",
        "maskreid_dist",
        "    3 maskreid_dist/a.py",
        "3 files: 2 of maskreid_dist, 1 of maskreid_kernels",
    ]


def test_another_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, TOOL, "--checkout", tmp_path], capture_output=True, text=True)
    assert (
        found.returncode == 2 and found.stderr.count("\n") == 1 and "no maskreid_dist there" in found.stderr
    )
