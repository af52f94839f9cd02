"""A conversion that is stopped at any moment, by any number of processes, ends in the same bytes."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from killed_conversion import SHARD_BYTES
from market import write_market
from maskreid_shards import ShardError, convert_market1501, open_shards
from test_shards_convert import names, tree

KILLED = Path(__file__).parent / "killed_conversion.py"


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_market(tmp_path / "market", identities=24)


def killed(src: Path, out: Path, workers: int, step: int) -> "subprocess.CompletedProcess[str]":
    """The conversion of `killed_conversion.py`, in a process of its own."""
    return subprocess.run(
        [sys.executable, KILLED, src, out, str(workers), str(step)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def stop_after(src: Path, out: Path, samples: int, workers: int = 1) -> None:
    """Interrupt a conversion once `samples` are written."""

    def stop(done: int, total: int) -> None:
        if done >= samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_market1501(src, out, shard_bytes=SHARD_BYTES, workers=workers, progress=stop)


def test_any_number_of_workers_gives_the_same_bytes(src: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        seen: list[tuple[int, int]] = []
        convert_market1501(
            src,
            tmp_path / str(workers),
            shard_bytes=SHARD_BYTES,
            workers=workers,
            progress=lambda done, total, seen=seen: seen.append((done, total)),  # type: ignore[misc]
        )
        assert seen == sorted(set(seen)) and seen[-1] == (111, 111)
    assert len(open_shards(tmp_path / "1").manifest.splits["train"].shards) > 5
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "3")


def test_workers_report_the_first_bad_file_in_order(src: Path, tmp_path: Path) -> None:
    spoiled = sorted((src / "bounding_box_train").iterdir())[::9]
    for path in spoiled:
        path.write_bytes(b"no picture")
    said = []
    for workers in (1, 3):
        with pytest.raises(ShardError, match="not a readable JPEG") as caught:
            convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES, workers=workers)
        said.append(str(caught.value))
        assert names(tmp_path) == ["market"]
    assert said[0] == said[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_conversion_keeps_its_finished_shards(src: Path, tmp_path: Path, workers: int) -> None:
    convert_market1501(src, tmp_path / "whole", shard_bytes=SHARD_BYTES)
    out, partial = tmp_path / "out", tmp_path / ".out.maskreid-partial"
    stop_after(src, out, samples=60, workers=workers)
    assert names(tmp_path) == [".out.maskreid-partial", "market", "whole"]
    kept = sorted(path.stem.replace("-", "/") for path in (partial / ".resume").glob("*.json"))
    assert kept
    # A finished shard that was damaged afterwards, a record that is none: written again.
    damaged = partial / kept[0]  # the first shard may be another: a worker that waits has not finished it
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (partial / "train" / "999999.tar").write_bytes(b"foreign")
    report = convert_market1501(src, out, shard_bytes=SHARD_BYTES)
    assert f"{len(kept) - 1} of " in report.notes[0] and "shards were kept" in report.notes[0]
    assert tree(out) == tree(tmp_path / "whole") and names(tmp_path) == ["market", "out", "whole"]


def test_other_inputs_or_options_start_afresh(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for change in ("seed", "time", "dataset"):
        stop_after(src, out, samples=60)
        seed, dataset = int(change == "seed"), "other" if change == "dataset" else "market"
        if change == "time":
            for path in (src / "bounding_box_train").iterdir():
                os.utime(path, (10**9, 10**9))
        report = convert_market1501(src, out, shard_bytes=SHARD_BYTES, seed=seed, dataset=dataset)
        assert report.notes == ("an interrupted conversion of other inputs or options was removed",)
        convert_market1501(src, tmp_path / "new", shard_bytes=SHARD_BYTES, seed=seed, dataset=dataset)
        assert tree(out) == tree(tmp_path / "new")
        for folder in (out, tmp_path / "new"):
            folder.rename(tmp_path / f"{folder.name}-{change}")


def test_kill_9_at_20_moments(src: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    convert_market1501(src, old, shard_bytes=SHARD_BYTES)
    whole = tree(old)
    steps = int(killed(src, tmp_path / "undisturbed", workers=1, step=0).stdout)
    assert tree(tmp_path / "undisturbed") == whole
    draw = random.Random(0)
    resumed = 0
    for number in range(10):
        out, workers = tmp_path / f"out{number}", 1 + number % 3
        # Half of the work's steps, shared by the workers: one of them comes to that many, however they take
        # turns. What is left after that is a shard, or the end of the conversion: at least four steps of one
        # process.
        for step in (draw.randint(1, steps // 2 // workers), draw.randint(1, 4)):
            assert killed(src, out, workers, step).returncode == -signal.SIGKILL
            assert not out.exists() and tree(old) == whole and len(open_shards(old).split("train")) == 97
        report = convert_market1501(src, out, shard_bytes=SHARD_BYTES)
        resumed += "were kept" in " ".join(report.notes)
        assert tree(out) == whole
        assert not (tmp_path / f".{out.name}.maskreid-partial").exists()
    assert resumed
