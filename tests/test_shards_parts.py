"""A conversion in parts gives the bytes of one run: any number of parts, any order, killed anywhere."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from killed_conversion import SHARD_BYTES
from market import write_market
from maskreid_shards import (
    ConversionReport,
    JobOptions,
    Layout,
    ShardError,
    convert,
    convert_part,
    finish_parts,
    scan_market1501,
    verify,
)
from program import run
from test_shards_convert import names, tree

KILLED = Path(__file__).parent / "killed_parts.py"
OPTIONS: JobOptions = {"dataset": "market", "shard_bytes": SHARD_BYTES}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 images; no test changes them."""
    return write_market(tmp_path_factory.mktemp("sources") / "market", identities=8)


@pytest.fixture(scope="module")
def layout(market: Path) -> Layout:
    return scan_market1501(market)


@pytest.fixture(scope="module")
def one_run(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> tuple[ConversionReport, Path]:
    out = tmp_path_factory.mktemp("whole") / "out"
    return convert(layout, out, **OPTIONS), out


@pytest.fixture(scope="module")
def whole(one_run: tuple[ConversionReport, Path]) -> dict[str, bytes]:
    return tree(one_run[1])


def killed(
    src: Path, out: Path, step: int, what: str, workers: int = 1
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, KILLED, src, out, str(workers), str(step), what],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("count", [1, 3, 8, 24])  # the last: more parts than shards
def test_any_number_of_parts_in_any_order(
    layout: Layout, one_run: tuple[ConversionReport, Path], tmp_path: Path, count: int
) -> None:
    numbers = list(range(1, count + 1))
    random.Random(count).shuffle(numbers)
    for number in numbers:
        part = convert_part(layout, tmp_path / "out", (number, count), **OPTIONS)
        assert part.folder.name == f"out.part-{number}-of-{count}" and not part.already
    again = convert_part(layout, tmp_path / "out", (1, count), **OPTIONS)
    assert again.already and "was finished already" in again.lines()[0]
    report = finish_parts(layout, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == tree(one_run[1]) and not verify(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert report.lines()[1:] == one_run[0].lines()[1:]


def test_parts_of_machines_that_see_the_data_elsewhere(
    market: Path, layout: Layout, whole: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(market, tmp_path / "copy", copy_function=shutil.copyfile)  # with new times
    os.utime(tmp_path / "copy" / "query" / os.listdir(tmp_path / "copy" / "query")[0], (1, 1))
    copy = scan_market1501(tmp_path / "copy")
    convert_part(layout, tmp_path / "out", (1, 2), **OPTIONS)
    convert_part(copy, tmp_path / "out", (2, 2), **OPTIONS)
    finish_parts(layout, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


def test_kill_9_anywhere(market: Path, layout: Layout, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw = random.Random(1)
    for number in (3, 1, 2):
        what = f"{number}/3"
        for workers in (1, 2) if number == 3 else (1,):
            step = draw.randint(1, 10)
            assert killed(market, out, step, what, workers).returncode == -signal.SIGKILL
            assert not (tmp_path / f"out.part-{number}-of-3").exists()
        with pytest.raises(ShardError, match=r"parts are not finished|no finished part"):
            finish_parts(layout, tmp_path / "out", **OPTIONS)
        convert_part(layout, tmp_path / "out", (number, 3), **OPTIONS)
    for path in tmp_path.glob("out.part-*"):
        shutil.copytree(path, tmp_path / f"kept-{path.name}")
    steps = int(killed(market, out, 0, "finish").stdout)
    assert tree(tmp_path / "out") == whole
    shutil.rmtree(tmp_path / "out")
    for path in tmp_path.glob("kept-*"):
        path.rename(tmp_path / path.name.removeprefix("kept-"))
    for _ in range(3):  # what was moved is not moved again: each run has fewer steps
        step = draw.randint(1, steps // 6)
        assert killed(market, out, step, "finish").returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    finish_parts(layout, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


def test_missing_and_foreign_and_damaged_parts_are_named(
    layout: Layout, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ShardError, match="no finished part lies beside it"):
        finish_parts(layout, out, **OPTIONS)
    convert_part(layout, out, (2, 3), **OPTIONS)
    with pytest.raises(ShardError, match=r"2 of 3 parts are not finished: 1, 3; run them \(--part 1/3\)"):
        finish_parts(layout, out, **OPTIONS)
    for number in (1, 3):
        convert_part(layout, out, (number, 3), **OPTIONS)
    for other in ({"seed": 1}, {"dataset": "x"}, {"on_bad_mask": "full"}):
        changed: JobOptions = {**OPTIONS, **other}  # type: ignore[typeddict-item]
        for call in (
            lambda changed=changed: finish_parts(layout, out, **changed),
            lambda changed=changed: convert_part(layout, out, (1, 3), **changed),
        ):
            with pytest.raises(ShardError, match="is no part of this conversion"):
                call()
    shutil.copytree(tmp_path / "out.part-1-of-3", tmp_path / "out.part-1-of-2")
    with pytest.raises(ShardError, match="parts of 2 and of 3; remove"):
        finish_parts(layout, out, **OPTIONS)
    shutil.rmtree(tmp_path / "out.part-1-of-2")
    shard = next((tmp_path / "out.part-2-of-3" / "train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardError, match="damaged, or made of other inputs; run again: --part 2/3"):
        finish_parts(layout, out, **OPTIONS)
    assert not out.exists() and not convert_part(layout, out, (2, 3), **OPTIONS).already
    finish_parts(layout, out, **OPTIONS)
    assert tree(out) == whole


def test_the_commands(market: Path, tmp_path: Path) -> None:
    command = ("convert", "market1501", market, tmp_path / "out", "--workers", 1)
    for part in ("1/2", "2/2"):
        status, output = run(*command, "--part", part)
        assert status == 0 and f"part {part[0]} of 2 is finished" in output, output
    status, output = run(*command, "--finish")
    assert status == 0 and "train: 33 images" in output and not verify(tmp_path / "out")
    status, output = run(*command, "--part", "1/2")
    assert status == 2 and "already holds shards" in output
    for wrong in ("0/2", "3/2", "1", "a/b"):
        status, output = run(*command, "--part", wrong)
        assert status == 2 and "write I/N" in output
    status, output = run(*command, "--part", "1/2", "--finish")
    assert status == 2 and "write all parts first" in output
