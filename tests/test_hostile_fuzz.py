"""Some of the odd inputs of `make fuzz`: taken, or refused by one line."""

from pathlib import Path

import pytest

import fuzz
from maskreid_dist.errors import UserError
from maskreid_shards.stores import pace, remote


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(pace, "GRACE_S", 5.0)


@pytest.mark.parametrize("door", ["manifest", "index", "shard", "recipe", "table", "http"])
def test_odd_inputs(door: str, converted: Path, tmp_path: Path) -> None:
    doors = fuzz.Doors(tmp_path, converted, None)
    found = {seed: fuzz.try_one(doors, door, seed) for seed in range(12)}
    assert set(found.values()) <= {"taken", "refused"}, found


def test_a_finding_is_one(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool sees a traceback, a message without end, and memory."""
    doors = fuzz.Doors(tmp_path, converted, None)

    def broken(random: object) -> None:
        raise KeyError("a")

    def loud(random: object) -> None:
        raise UserError("a" * 5_000)

    def greedy(random: object) -> None:
        (b"a" * (fuzz.MEMORY + (64 << 20))).count(b"b")

    doors.doors |= {"broken": broken, "loud": loud, "greedy": greedy}
    found = [fuzz.try_one(doors, door, 0) for door in ("broken", "loud", "greedy")]
    assert found[0].startswith("KeyError") and found[1].startswith(
        "5000 characters, or not one printable line"
    )
    assert found[2].endswith("MB of memory")
