"""`maskreid convert`: published counts, merged sets, Ctrl-C; and the quick check of JPEGs that it relies
on."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from market import jpeg, write_market
from maskreid_dist.cli.app import app
from maskreid_dist.cli.convert import parse_bytes
from maskreid_shards import ShardError, open_shards
from maskreid_shards.decode import checked_picture, decode
from test_shards_layouts import write_viper


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--workers", "1"])
    return result.exit_code, result.output


def test_expect_published(tmp_path: Path) -> None:
    src = write_market(tmp_path / "Market-1501")
    status, output = run("market1501", src, tmp_path / "out", "--expect-published")
    assert status == 2 and "train images: published 12936, found 25" in output
    assert not (tmp_path / "out").exists()
    status, output = run("market1501", src, tmp_path / "out")
    assert status == 0 and "NOT AS PUBLISHED: query images: published 3368, found 2" in output
    src.rename(tmp_path / "mine")
    status, output = run("market1501", tmp_path / "mine", tmp_path / "out2", "--expect-published")
    assert status == 2 and "does not say" in output


def test_merge(tmp_path: Path) -> None:
    parts = f"a=market1501:{write_market(tmp_path / 'x')}", f"b=market1501:{write_market(tmp_path / 'y')}"
    for number, image in enumerate(sorted((tmp_path / "y" / "bounding_box_train").iterdir())):
        image.write_bytes(jpeg(2000 + number))  # others than those of x
    status, output = run("merge", tmp_path / "out", *parts)
    assert status == 0 and "b (market1501): 25 images, pids 8 to 14, cameras 4 to 6" in output, output
    assert open_shards(tmp_path / "out").manifest.splits["train"].identities == 14
    for part, word in (("a", "write NAME=LAYOUT:SRC"), ("a=b:c", "no layout 'b'")):
        status, output = run("merge", tmp_path / "new", part)
        assert status == 2 and word in output
    status, output = run("merge", tmp_path / "new", parts[0], parts[0])
    assert status == 2 and "given twice" in output


def test_a_drawn_split_is_said(tmp_path: Path) -> None:
    src = write_viper(tmp_path / "VIPeR")
    options = ("--train-identities", 4, "--split-seed", 3, "--on-bad-mask", "full")
    status, output = run("viper", src, tmp_path / "out", *options)
    assert status == 0 and "4 train identities drawn with split seed 3" in output


def test_the_program_starts_without_torch() -> None:
    """Each worker process of a conversion imports the program again."""
    code = "import sys, maskreid_dist.cli.app; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MB", 64_000_000),
        ("1GiB", 2**30),
        ("1.5 kib", None),
        ("20 KiB", 20480),
        ("500000", 500_000),
        ("64", None),
        ("x", None),
        ("4m", None),
    ],
)
def test_shard_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(typer.BadParameter, match=r"MB"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == size


def run_script(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A program of this folder, in a process group of its own."""
    return subprocess.run(
        [sys.executable, Path(__file__).parent / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_one_line_and_resumes(tmp_path: Path, workers: int) -> None:
    command = ("convert", "market1501", write_market(tmp_path / "m", identities=24), tmp_path / "out")
    options = ("--shard-size", "12KB", "--workers", workers)
    # Of 111 samples, in shards of at most 20: some shard is finished by then, the conversion is not.
    ended = run_script("interrupted_conversion.py", 60, *command, *options)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.count("\n") == 1 and "interrupted" in ended.stderr and not ended.stdout
    assert not (tmp_path / "out").exists()
    status, output = run(*command[1:], "--shard-size", "12kb")
    assert status == 0 and "shards were kept from an interrupted conversion" in output


def test_ctrl_c_while_workers_start_is_left_to_the_first_process(tmp_path: Path) -> None:
    command = ("convert", "market1501", write_market(tmp_path / "m"), tmp_path / "out")
    ended = run_script("worker_interrupted_at_start.py", *command, "--shard-size", "10KB", "--workers", 2)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    assert len(open_shards(tmp_path / "out").split("train")) == 25


def test_the_quick_check_finds_what_decoding_finds() -> None:
    draw = random.Random(0)
    bad = 0
    for case in range(400):
        data = bytearray(jpeg(case % 5, (64, 128)))
        if case % 2:
            del data[draw.randrange(len(data)) :]
        else:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        found: list[tuple[int, int] | str] = []
        for check in (checked_picture, decode):
            try:
                result = check(bytes(data), formats=("JPEG",), where="x")
                found.append(result if isinstance(result, tuple) else result.size)
            except ShardError as error:
                found.append(str(error))
        assert found[0] == found[1]
        bad += isinstance(found[0], str)
    assert bad > 100
    assert checked_picture(jpeg(1, (64, 128)), formats=("JPEG",), where="x").size == (64, 128)
