"""`maskreid bench loader --latency-ms` and `bench mixing`: figures follow what was read and planned."""

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from market import write_market
from maskreid_dist.bench import slow_server
from maskreid_dist.bench.access import AccessRun, Speed, access_promises
from maskreid_dist.cli.app import app
from maskreid_shards import IdentityTable, Plan, StreamPlan, convert_market1501, open_shards
from maskreid_shards.bench.mixing import mixing


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    source = write_market(folder / "market", identities=3, images=2)
    convert_market1501(source, folder / "shards", dataset="m")
    return folder / "shards"


def test_figures_and_exit_status(shards: Path, tmp_path: Path) -> None:
    options = "--latency-ms 1 --pairs 80 --workers 0 --workers 1 --steps 1 --rounds 2"
    command = ["bench", "loader", "--shards", str(shards), *options.split(), "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == (1 if "MISS" in result.output else 0), result.output
    assert result.output.count("PASS") + result.output.count("MISS") == 5
    (path,) = tmp_path.glob("*-access.csv")
    rows = list(csv.DictReader(path.open()))
    assert [(row["place"], row["access"], row["workers"]) for row in rows] == [
        *(("disk", access, "0") for access in ("memory", "indexed", "stream")),
        *(("http", access, workers) for workers in "01" for access in ("indexed", "stream")),
    ]
    assert all(0 < float(row["y20"]) <= float(row["pairs_s"]) <= float(row["y80"]) for row in rows)
    assert all(float(row["alone_pairs_s"] or 0) > 0 or row["workers"] == "1" for row in rows)


def test_promises_can_fail() -> None:
    speeds = {("disk", "memory"): 100.0, ("disk", "indexed"): 94.0, ("disk", "stream"): 1.0}
    speeds |= {("http", "indexed"): 10.0, ("http", "stream"): 60.0}
    found = {AccessRun(*where, 0): [Speed(speed, speed / 2)] * 3 for where, speed in speeds.items()}
    found[AccessRun("http", "stream", 0)] = [Speed(60, 20)] * 2 + [Speed(1, 90)]
    kept = {promise.text: promise.kept for promise in access_promises(found, 20)}
    assert list(kept.values()) == [False, False, True, False]


def test_the_server_gives_what_is_asked_for(shards: Path) -> None:
    local = open_shards(shards).split("train")
    with slow_server.slow_server(shards, 0) as url:
        split = open_shards(url).split("train")
        served = split.read_many(range(len(split)))
    read = local.read_many(range(len(local)))
    assert [(p.key, p.image, p.mask) for p in served] == [(p.key, p.image, p.mask) for p in read]


def test_mixing_of_made_up_batches() -> None:
    """Two shards of two identities: each batch of two is of one shard, or of both."""
    table = IdentityTable.of_pids([1, 2, 3, 4])
    plan = Plan.pk(table, identities=2, images=1, seed=0)
    apart = StreamPlan.of(plan, [0, 0, 1, 1], pool=2, world=1)
    found = mixing(apart, np.array([0, 0, 1, 1]), 1, 5)
    assert (found.shards, found.one_shard, found.again) == (1.0, 1.0, 1.0)
    across = StreamPlan.of(plan, [0, 0, 1, 1], pool=1, world=2)
    found = mixing(across, np.array([0, 0, 1, 1]), 2, 5)
    assert (found.shards, found.one_shard, found.again) == (2.0, 0.0, 1.0)  # in the order of the shards
    across = StreamPlan.of(plan, [0, 0, 1, 1], pool=2, world=2)
    assert 0 < mixing(across, np.array([0, 0, 1, 1]), 2, 20).again < 1


def test_the_command_says_how_mixed() -> None:
    result = CliRunner().invoke(app, "bench mixing --pool 16 --pool 100 --epochs 3".split())
    assert result.exit_code == 0, result.output
    assert "indexed" in result.output and "stream, pool of 100" in result.output
    refused = CliRunner().invoke(app, "bench mixing --pool 5".split())
    assert refused.exit_code == 2 and "a pool of 5 identities" in refused.output
