"""The tool that prints which files a batch passes from shard to gradient."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).with_name("way_of_a_batch.py")


def test_a_batch_goes_from_the_shards_through_the_network_to_the_loss() -> None:
    found = subprocess.run([sys.executable, TOOL], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    files = [words[1] for words in lines if words[0].isdigit() and words[1].endswith(".py")]
    assert found.stdout.endswith(f"\n{len(files)} files\n")
    order = (
        "shards/maskreid_shards/reading.py",
        "maskreid_dist/data/transforms.py",
        "maskreid_dist/model/network.py",
        "kernels/maskreid_kernels/ranking/__init__.py",
    )
    assert [name for name in files if name in order] == list(order)
    assert not [name for name in files if name.startswith(("tests/", "maskreid_dist/cli/"))]


def test_another_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, TOOL, "--checkout", tmp_path], capture_output=True, text=True)
    assert (
        found.returncode == 2 and found.stderr.count("\n") == 1 and "no maskreid_dist there" in found.stderr
    )
