"""`maskreid verify`: exit statuses and output."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maskreid_dist.cli import app
from maskreid_shards import open_shards, verify

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_verify_of_sound_shards():
    assert run("verify", WALKERS) == (0, f"{WALKERS}: all is well\n")
    assert json.loads(run("verify", WALKERS, "--json", "--workers", 2)[1]) == {"problems": []}


def test_verify_names_what_is_wrong(tmp_path):
    shards = shutil.copytree(WALKERS, tmp_path / "walkers")
    split = open_shards(shards).split("query")
    row = split.index[9]
    shard = shards / "query" / "000000.tar"
    data = bytearray(shard.read_bytes())
    data[int(row["mask_offset"]) + 50] ^= 4
    shard.write_bytes(data)
    (shards / "train" / "notes.txt").write_text("x")
    status, output = run("verify", shards, "--json")
    assert status == 1
    problems = json.loads(output)["problems"]
    found = [(p["shard"], p["key"], p["offset"], p["kind"]) for p in problems]
    assert found == [
        ("train/notes.txt", None, None, "foreign-file"),
        ("query/000000.tar", None, None, "shard-sha256"),
        ("query/000000.tar", row["key"].decode(), int(row["mask_offset"]), "mask-crc32"),
    ]
    assert verify(shards, workers=2) == verify(shards)
    status, output = run("verify", shards)
    assert status == 1 and "3 problems" in output


@pytest.mark.parametrize("make", [False, True])
def test_verify_that_cannot_run(tmp_path, make):
    folder = tmp_path / "shards"
    if make:
        folder.mkdir()
    status, output = run("verify", folder)
    assert status == 2 and "maskreid: error: " in output and output.count("\n") == 1
