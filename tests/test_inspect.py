"""`maskreid verify` and `maskreid stats`: exit statuses and output."""

import json
import shutil
import statistics
from collections import Counter
from pathlib import Path

import pytest

from maskreid_shards import Plan, open_shards, verify
from program import run

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"


def test_verify_of_sound_shards() -> None:
    assert run("verify", WALKERS) == (0, f"{WALKERS}: all is well\n")
    assert json.loads(run("verify", WALKERS, "--json", "--workers", 2)[1]) == {"problems": []}


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
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
def test_verify_that_cannot_run(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "shards"
    if make:
        folder.mkdir()
    status, output = run("verify", folder)
    assert status == 2 and "maskreid: error: " in output and output.count("\n") == 1


def test_stats_against_counting(tmp_path: Path) -> None:
    status, output = run(
        "stats", WALKERS, "--identities", 12, "--images", 9, "--json", "--output", tmp_path / "x.png"
    )
    assert status == 0 and (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads(output)
    for name in ("train", "query", "gallery"):
        split = open_shards(WALKERS).split(name)
        pids, camids = split.pids.tolist(), split.camids.tolist()
        images = Counter(pid for pid in pids if pid > 0)
        told = found["splits"][name]
        assert told["samples"] == len(pids) and told["identities"] == len(images)
        assert told["identities_by_images"] == {str(k): v for k, v in Counter(images.values()).items()}
        assert told["images_per_camera"] == {str(k): v for k, v in Counter(camids).items()}
        assert told["images_per_identity"]["median"] == statistics.median(images.values())
        seen = Counter(pid for pid, _ in {(p, c) for p, c in zip(pids, camids, strict=True) if p > 0})
        assert told["identities_by_cameras"] == {str(k): v for k, v in Counter(seen.values()).items()}
    split = open_shards(WALKERS).split("train")
    for effect in found["batch"]["few_images"]:
        plan = Plan.pk(split.table, identities=12, images=9, seed=3, few_images=effect["few_images"])
        shares = []
        for epoch in range(40):  # the expected share, against what many passes really leave out
            steps = range(plan.steps_per_epoch)
            drawn = {int(sample) for step in steps for sample in plan.global_batch(epoch, step)}
            shares.append(1 - len(drawn) / len(split))
        assert effect["never_drawn"] == pytest.approx(statistics.mean(shares), abs=0.005)
        assert effect["steps_per_epoch"] == plan.steps_per_epoch
    status, output = run("stats", WALKERS, "--identities", 500)
    assert status == 0 and "the split has 200" in output
