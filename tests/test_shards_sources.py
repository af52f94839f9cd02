"""Sources of a large set, which are packed, are those that were given; as those of a small one, which are
kept."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from maskreid_shards import ShardError, Source, samples
from maskreid_shards.samples import Sources


def given() -> list[Source]:
    """With everything that a field may be."""
    found = []
    for number in range(12):
        folder = Path(f"/data/{number // 5}") if number % 4 else Path()
        found.append(
            Source(
                folder / f"ä\udcff{number}.jpg",
                folder / "seg" / f"{number}.png" if number % 3 else None,
                number % 4 - 1,
                number % 2 + 1,
                "train" if number < 8 else "query",
                f"k{number}",
                f"{number // 5}/{number}.jpg" if number % 5 else f"{number}.jpg",
                array=f"labeled/{number}" if number % 7 == 6 else None,
                dataset="a" if number % 2 else None,
                identity=f"{number % 4:04d}" if number % 3 else "",
            )
        )
    return found


def check_same(sources: Sources, expected: Sequence[Source]) -> None:
    assert list(sources) == list(expected) == [sources[at] for at in range(len(sources))]
    assert sources.pids.tolist() == [source.pid for source in expected]
    assert sources.camids == {source.camid for source in expected}
    assert sources.splits == [source.split for source in expected]
    for masks in (False, True):
        paths = [source.mask_path if masks else source.path for source in expected]
        folders = {str(path)[: str(path).rfind("/") + 1] for path in paths if path is not None}
        assert sources.places(masks=masks) == folders


@pytest.mark.parametrize("kept", [3, 11, 12, 100])  # packed after some, after all but one, not at all
def test_sources_are_those_that_were_given(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT", kept)
    expected = given()
    sources = Sources.of(iter(expected))
    check_same(sources, expected)
    assert sources.any_arrays
    order = np.array([7, 0, 11])
    check_same(sources.take(order), [expected[at] for at in order])
    check_same(sources[2:9:3], expected[2:9:3])
    for part in (sources, sources.take(order)):
        check_same(pickle.loads(pickle.dumps(part)), list(part))
    assert not Sources.of(source for source in expected if source.array is None).any_arrays
    check_same(Sources.of(()), [])


def test_a_part_is_handed_over_without_the_rest() -> None:
    many = [Source(Path(f"/data/{number}.jpg"), None, 1, 1, "train", "k", "n") for number in range(1000)]
    assert len(pickle.dumps(Sources.of(many)[:2])) < len(pickle.dumps(Sources.of(many))) / 50


@pytest.mark.parametrize("kept", [0, 9])
def test_a_pid_that_no_index_holds(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT", kept)
    with pytest.raises(ShardError, match="pids have at most 18 digits"):
        Sources.of([Source(Path("a.jpg"), None, 10**30, 1, "train", "k", "n")])
