"""A gallery on disk: a model of lists, kills at any byte, damage, two writers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskreid_dist.gallery import Gallery
from maskreid_dist.gallery.journal import GalleryError
from maskreid_dist.gallery.store import Model

MODEL = Model("test", 3, "ab" * 32)
Array = NDArray[Any]


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)


def filled(folder: Path, people: int = 4, each: int = 3) -> Gallery:
    gallery = Gallery.create(folder, 5, MODEL)
    for pid in range(people):
        keys = [f"{pid}/{n}" for n in range(each)]
        gallery.append(rows(each, pid), keys, [pid] * each, list(range(each)))
    return gallery


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with filled(tmp_path / "g"):
        pass
    gallery = Gallery.open(tmp_path / "g")
    assert np.array_equal(gallery.features, np.concatenate([rows(3, pid) for pid in range(4)]))
    assert list(gallery.keys[:4]) == ["0/0", "0/1", "0/2", "1/0"]
    assert gallery.pids.tolist() == np.repeat(range(4), 3).tolist()
    assert gallery.camids.tolist() == [0, 1, 2] * 4
    assert gallery.model == MODEL
    gallery.verify()
    with pytest.raises(GalleryError, match="reading only"):
        gallery.append(rows(1), ["x"], [1], [1])


@settings(max_examples=40)
@given(st.data())
def test_any_order_of_events_is_a_list(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("gallery") / "g"
    gallery = Gallery.create(folder, 5, MODEL)
    expected: dict[str, tuple[int, Array]] = {}
    for number in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["add", "add", "person", "key", "compact", "reopen"]))
        if action == "add":
            pid, count = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
            keys = [f"{number}-{n}" for n in range(count)]
            gallery.append(rows(count, number), keys, [pid] * count, [1] * count)
            expected |= {key: (pid, row) for key, row in zip(keys, rows(count, number), strict=True)}
        elif action == "person":
            pid = data.draw(st.integers(0, 3))
            gone = [key for key, (p, _) in expected.items() if p == pid]
            assert gallery.forget(pids=[pid]) == len(gone)
            expected = {key: value for key, value in expected.items() if key not in gone}
        elif action == "key" and expected:
            key = data.draw(st.sampled_from(sorted(expected)))
            assert gallery.forget(keys=[key]) == 1
            del expected[key]
        elif action == "compact":
            gallery.compact()
            assert len(gallery) == len(expected)
        elif action == "reopen":
            gallery.close()
            gallery = Gallery.open(folder, writing=True)
        alive = np.flatnonzero(gallery.alive)
        assert [gallery.keys[int(row)] for row in alive] == list(expected)
        assert gallery.pids[alive].tolist() == [pid for pid, _ in expected.values()]
        if expected:
            assert np.array_equal(gallery.features[alive], np.stack([row for _, row in expected.values()]))
    gallery.verify()
    gallery.close()


def test_search_passes_over_those_taken_out(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    query = rows(3, 2)[:1]  # a copy of 2/0
    assert gallery.keys[int(gallery.search(query, 1).index_QK[0, 0])] == "2/0"
    gallery.forget(keys=["2/0"])
    unit = gallery.features / np.linalg.norm(gallery.features, axis=1, keepdims=True)
    similarity = unit @ (query[0] / np.linalg.norm(query[0]))
    similarity[gallery.keys.index("2/0")] = -2
    found = gallery.search(query, 5)
    assert found.index_QK[0].tolist() == np.argsort(-similarity)[:5].tolist()
    assert gallery.search(query, 100).index_QK.shape == (1, 11)


def test_a_kill_at_any_byte_loses_the_last_event_at_most(tmp_path: Path) -> None:
    """Rows come first, then their line: whatever was cut off, the rest stands and can be written on."""
    with filled(tmp_path / "whole", people=3, each=2) as gallery:
        gallery.forget(pids=[1])
    data, journal = (tmp_path / "whole" / name for name in ("rows-1.f32", "journal-1.txt"))
    lines = journal.read_bytes().splitlines(keepends=True)
    ends = np.cumsum([0, *map(len, lines)])
    for stop in range(0, int(ends[-1]) + 1, 3):
        folder = tmp_path / f"cut{stop}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes((tmp_path / "whole" / "manifest.json").read_bytes())
        (folder / "rows-1.f32").write_bytes(data.read_bytes() + b"half a row")
        (folder / "journal-1.txt").write_bytes(journal.read_bytes()[:stop])
        events = int(np.searchsorted(ends, stop, side="right")) - 1
        reader = Gallery.open(folder)
        assert len(reader) == 2 * min(events, 3)
        assert reader.alive.sum() == 2 * min(events, 3) - 2 * (events > 3)
        with Gallery.open(folder, writing=True) as writer:
            writer.append(rows(1, 9), ["new"], [9], [1])
            writer.verify()
        assert np.array_equal(Gallery.open(folder).features[-1], rows(1, 9)[0])


def test_compaction_leaves_no_byte_of_the_person(tmp_path: Path) -> None:
    with filled(tmp_path / "g") as gallery:
        gallery.forget(pids=[2])
        assert gallery.compact() == 3
    left = b"".join(path.read_bytes() for path in sorted((tmp_path / "g").iterdir()))
    assert rows(3, 2).tobytes()[:20] not in left and b'"2/0"' not in left
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == [
        "journal-2.txt",
        "manifest.json",
        "rows-2.f32",
    ]


def damaged(folder: Path, kind: str) -> str:
    """Spoil a gallery; the word that the error must have."""
    journal, data, manifest = (folder / n for n in ("journal-1.txt", "rows-1.f32", "manifest.json"))
    text = journal.read_bytes()
    if kind == "journal":
        journal.write_bytes(text.replace(b"0/1", b"7/7", 1))
        return "line 1"
    if kind == "rows":
        data.write_bytes(data.read_bytes()[:-4])
        return "bytes"
    if kind == "no journal":
        journal.unlink()
        return "journal-1.txt"
    if kind == "format":
        manifest.write_text(manifest.read_text().replace("gallery-1", "gallery-9"))
        return "gallery-9"
    if kind == "deep":
        manifest.write_text("[" * 100_000)
        return "no gallery's manifest"
    described = json.loads(manifest.read_text())
    described["dimensions"] = "5"
    manifest.write_text(json.dumps(described))
    return "no gallery's manifest"


@pytest.mark.parametrize("kind", ["journal", "rows", "no journal", "format", "deep", "type"])
def test_damage_is_one_line(tmp_path: Path, kind: str) -> None:
    filled(tmp_path / "g").close()
    word = damaged(tmp_path / "g", kind)
    for writing in (False, True):
        with pytest.raises(GalleryError, match=word) as caught:
            Gallery.open(tmp_path / "g", writing=writing)
        assert "\n" not in str(caught.value)


def test_rows_that_rot_are_found(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    data = tmp_path / "g" / "rows-1.f32"
    spoilt = bytearray(data.read_bytes())
    spoilt[5 * 4 * 4] ^= 1  # of the second event
    data.write_bytes(spoilt)
    with pytest.raises(GalleryError, match="rows 3 to 5"):
        Gallery.open(tmp_path / "g").verify()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="maskreid embed"):
        Gallery.open(tmp_path / "nowhere")
    gallery = filled(tmp_path / "g")
    with pytest.raises(GalleryError, match="another process"):
        Gallery.open(tmp_path / "g", writing=True)
    with pytest.raises(GalleryError, match="not empty"):
        Gallery.create(tmp_path / "g", 5, MODEL)
    for features, keys, word in (
        (rows(1), ["0/0"], "there already"),
        (rows(2), ["a", "a"], "there already"),
        (rows(1), ["a", "b"], "shape"),
        (np.full((1, 5), np.nan, np.float32), ["a"], "finite"),
    ):
        with pytest.raises(GalleryError, match=word):
            gallery.append(features, keys, [1] * len(keys), [1] * len(keys))
    assert len(gallery) == 12
    gallery.forget(keys=["0/0"])
    gallery.append(rows(1), ["0/0"], [1], [1])  # free again
