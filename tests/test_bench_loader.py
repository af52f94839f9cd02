"""`maskreid bench loader`: every source gives the same batches, figures and exit status follow what was
measured."""

import csv
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from market import write_market
from maskreid_dist.bench import loader as loader_bench
from maskreid_dist.bench.loader import LoaderBench, Run, WorkerMemory, all_runs, worker_memory
from maskreid_dist.bench.loader_data import LoaderData, comes_from_disk, empty_cache, repeated_pairs
from maskreid_dist.bench.loader_report import LoaderResults, promises, table, write_csv
from maskreid_dist.cli.app import app
from maskreid_dist.data.batches import Batch, PlannedSteps
from maskreid_kernels.bench.figures import Machine
from maskreid_shards import convert_market1501


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    convert_market1501(
        write_market(folder / "market", identities=3, images=2), folder / "shards", dataset="m"
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def data(shards: Path) -> Iterator[LoaderData]:
    with repeated_pairs(shards, 80) as data:
        yield data


def first_batches(bench: LoaderBench, source: str, workers: int) -> list[Batch]:
    loader, steps = bench.loader(Run(source, "augment", workers, False))
    steps.batches = PlannedSteps(bench.plan, 0, 3, 0, 1)
    return list(loader)


@pytest.mark.parametrize("source", ["memory", "loose", "loose, batched"])
@pytest.mark.parametrize("workers", [0, 2])
def test_sources_give_the_batches_of_the_shards(data: LoaderData, source: str, workers: int) -> None:
    bench = LoaderBench(data, 1, False)
    expected, found = first_batches(bench, "shards", 0), first_batches(bench, source, workers)
    assert len(expected) == len(found) == 3
    assert not torch.equal(expected[0].image_B3HW, expected[1].image_B3HW)
    for ours, theirs in zip(expected, found, strict=True):
        for name in ("image_B3HW", "mask_B1HW", "pids_B", "samples_B"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_webdataset_reads_every_pair_once_a_pass(data: LoaderData) -> None:
    bench = LoaderBench(data, 1, False)
    stream = bench.loader(Run("webdataset", "raw", 0, False))[0].dataset.read  # type: ignore[attr-defined]
    numbers = range(len(data.split))  # whichever are asked for
    for _ in range(2):
        read = {pair.key: pair for pair in stream(numbers)}
        assert len(read) == len(data.split)
        for pair in bench.bytes:
            other = read[pair.key]
            assert (pair.image, pair.mask, pair.pid) == (other.image, other.mask, other.pid)


def test_figures_csv_and_exit_status(shards: Path, tmp_path: Path) -> None:
    options = "--pairs 64 --workers 0 --workers 1 --steps 1 --rounds 2 --no-cold"
    command = ["bench", "loader", "--shards", str(shards), *options.split(), "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == (1 if "MISS" in result.output else 0), result.output
    assert result.output.count("PASS") + result.output.count("MISS") == 3
    (path,) = tmp_path.glob("*-loader.csv")
    rows = list(csv.DictReader(path.open()))
    speeds = [row for row in rows if row["metric"] == "pairs_s"]
    assert len(speeds) == 2 * (4 + 5 + 1 + 5) and len(rows) == len(speeds) + 2
    assert all(0 < float(row["y20"]) <= float(row["y50"]) <= float(row["y80"]) for row in speeds)
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert "| warm | augment | 1 | shards |" in path.with_suffix(".md").read_text()


def made_up(shards_speed: float, growth: float) -> LoaderResults:
    speeds = {run: [100.0, 100.0, 100.0] for run in all_runs((0, 2), cold=True)}
    for run in speeds:
        if run.source == "shards":
            speeds[run] = [shards_speed, shards_speed, 1.0]  # a slow round is no median
    return LoaderResults(1000, 5, False, speeds, WorkerMemory(100, 50.0, 50.0 + growth))


def test_promises_can_fail() -> None:
    assert [p.kept for p in promises(made_up(111.0, 1.0))] == [True] * 5
    assert [p.kept for p in promises(made_up(105.0, 1.0))] == [True, True, False, False, True]
    assert [p.kept for p in promises(made_up(94.0, 9.0))] == [False] * 5


def test_table_and_csv_say_what_was_measured(tmp_path: Path) -> None:
    found = made_up(150.0, 1.0)
    assert ["cold", "augment", "2", "loose", "100", "100", "100", "1.50"] in table(found)
    write_csv(tmp_path / "x.csv", found, Machine("cpu", 1, "3", "2", "3", "c", "2026-01-01"))
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert {row["y50"] for row in rows if row["source"] == "shards" and row["metric"] == "pairs_s"} == {
        "150.0"
    }
    assert [row["y50"] for row in rows if row["metric"] == "worker_second_mb"] == ["51.0"]


def test_private_memory() -> None:
    before = loader_bench._private_bytes(os.getpid())
    with mmap.mmap(-1, 256_000_000, flags=mmap.MAP_PRIVATE) as block:
        block.write(bytes(len(block)))
        found = loader_bench._private_bytes(os.getpid()) - before
    assert 200_000_000 < found < 300_000_000


def test_memory_is_that_of_the_worker(data: LoaderData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def private_bytes(pid: int) -> int:
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
        asked.append(pid)
        return len(asked) * 1_000_000

    monkeypatch.setattr(loader_bench, "_private_bytes", private_bytes)
    found = worker_memory(LoaderBench(data, 1, False))
    assert found.batches >= 2 and len(asked) == 2 * found.batches and len(set(asked)) == 1
    assert (found.first_mb, found.second_mb) == (found.batches, 2 * found.batches)


def test_an_emptied_cache_reads_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1_000_000)
    comes_from_disk(path)  # what it runs is in memory too then
    assert not comes_from_disk(path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    empty_cache([path], everything=False)
    if not comes_from_disk(path):
        pytest.skip("the temporary folder is in memory")
    assert not comes_from_disk(path)
