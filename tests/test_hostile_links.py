"""Links, pipes and other people's folders that lie where this project writes or deletes: nothing outside
changes, and what is refused is named."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faulty_server import serving
from market import write_market
from maskreid_dist.gallery import Gallery
from maskreid_dist.gallery.store import Model
from maskreid_dist.model.checkpoint import finished_checkpoints
from maskreid_dist.training.environment import Place
from maskreid_dist.training.run_folder import lock_run_directory
from maskreid_dist.training.run_log import RunLog
from maskreid_dist.training.saving import _prune
from maskreid_shards import ShardError, convert_market1501, open_shards, verify
from maskreid_shards.atomic import create, open_to_append, plain_folder, remove_folder, write_atomically
from program import run

PRECIOUS = b"somebody else's"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A folder whose files have the names that ours have."""
    folder = tmp_path / "treasure"
    for name in ("step_00000001", "step_00000002", "step_00000003", "train", ".resume"):
        (folder / name).mkdir(parents=True)
        (folder / name / "000000.tar").write_bytes(PRECIOUS)
    return folder


def whole(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.tar"))]


def test_a_written_file_replaces_a_link_and_spares_its_target(tmp_path: Path, precious: Path) -> None:
    for number, write in enumerate[Callable[[Path], object]](
        [lambda path: write_atomically(path, b"ours"), lambda path: create(path).close()]
    ):
        link = tmp_path / f"link{number}"
        link.symlink_to(precious)
        write(link)
        assert link.is_file() and not link.is_symlink() and precious.read_bytes() == PRECIOUS


def test_a_guessed_neighbour_catches_nothing(tmp_path: Path, precious: Path) -> None:
    (tmp_path / ".metrics.jsonl.partial").symlink_to(precious)
    write_atomically(tmp_path / "metrics.jsonl", b"ours")
    assert precious.read_bytes() == PRECIOUS and (tmp_path / "metrics.jsonl").read_bytes() == b"ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".metrics.jsonl.partial",
        "metrics.jsonl",
        "precious",
    ]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "report.html"
    if kind == "folder":
        path.mkdir()
    else:
        pipe = path if kind == "pipe" else tmp_path / "pipe"
        os.mkfifo(pipe)
        if pipe != path:
            path.symlink_to(pipe)
    with pytest.raises(OSError, match="no regular file") as caught:
        write_atomically(path, b"ours")
    assert caught.value.filename == str(path) and not path.is_file()


def test_nothing_is_appended_through_a_link_or_to_a_pipe(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "lock").symlink_to(precious)
    os.mkfifo(tmp_path / "events.jsonl")
    for name, word in (("lock", "is a link"), ("events.jsonl", "no regular file")):
        with pytest.raises(OSError, match=word) as caught:
            open_to_append(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert precious.read_bytes() == PRECIOUS


def test_a_run_directory_full_of_links_harms_nobody(tmp_path: Path, precious: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("lock", "metrics.jsonl", "events.jsonl"):
        (run_folder / name).symlink_to(precious)
    said = lock_run_directory(run_folder)
    assert isinstance(said, str) and "is a link" in said
    with pytest.raises(OSError, match="is a link"):
        os.close(open_to_append(run_folder / "events.jsonl"))
    RunLog(run_folder, 0, 1).file.close()  # rewrites what it keeps: the link goes
    assert precious.read_bytes() == PRECIOUS and not (run_folder / "metrics.jsonl").is_symlink()


def test_only_folders_of_ours_are_pruned(tmp_path: Path, treasure: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in ("step_00000001", "step_00000002", "step_1", "step_of_mine", "step_mine.partial"):
        (checkpoints / name).mkdir(parents=True)
    (checkpoints / "step_00000000").symlink_to(treasure)
    (checkpoints / "step_00000009.partial").symlink_to(treasure)
    assert [path.name for path in finished_checkpoints(checkpoints)] == ["step_00000001", "step_00000002"]
    _prune(checkpoints, 1, None)
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step_00000000",
        "step_00000002",
        "step_1",
        "step_mine.partial",
        "step_of_mine",
    ]
    assert len(whole(treasure)) == 5


def test_linked_checkpoints_are_refused_by_name(tmp_path: Path, treasure: Path) -> None:
    link = tmp_path / "checkpoints"
    link.symlink_to(treasure)
    with pytest.raises(OSError, match="is a link") as caught:
        plain_folder(link, own=False)
    assert caught.value.filename == str(link) and len(whole(treasure)) == 5
    remove_folder(link)
    assert not link.is_symlink() and len(whole(treasure)) == 5


def test_a_run_does_not_start_over_linked_checkpoints(tmp_path: Path, treasure: Path) -> None:
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    from maskreid_dist.errors import UserError
    from maskreid_dist.training.meeting import Meeting
    from maskreid_dist.training.run_folder import hold_run_folder

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(treasure)
    meeting = Meeting(Place(0, 0, 1), HashStore(), 60.0)
    meeting.join()
    with pytest.raises(UserError, match=r"run: checkpoints is a link"):
        hold_run_folder(meeting, tmp_path / "run", True, False)
    assert len(whole(treasure)) == 5


# Conversion.


@pytest.mark.parametrize("planted", ["link", "link to nowhere", "file"])
def test_a_planted_partial_folder_is_refused(tmp_path: Path, treasure: Path, planted: str) -> None:
    src = write_market(tmp_path / "market", identities=2, images=2)
    partial = tmp_path / ".out.maskreid-partial"
    if planted == "file":
        partial.write_bytes(PRECIOUS)
    else:
        partial.symlink_to(treasure if planted == "link" else tmp_path / "nowhere")
    with pytest.raises(ShardError, match="cannot be written"):
        convert_market1501(src, tmp_path / "out")
    assert len(whole(treasure)) == 5 and os.path.lexists(partial) and not (tmp_path / "nowhere").exists()


def test_links_inside_a_partial_folder_are_removed_not_followed(tmp_path: Path, treasure: Path) -> None:
    src = write_market(tmp_path / "market", identities=2, images=2)
    partial = tmp_path / ".out.maskreid-partial"
    partial.mkdir()
    for name in ("train", "index", "manifest.json", "elsewhere"):
        (partial / name).symlink_to(treasure / "train" if name == "train" else treasure)
    convert_market1501(src, tmp_path / "out")
    assert not verify(tmp_path / "out") and len(whole(treasure)) == 5
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_linked_records_are_refused(tmp_path: Path, treasure: Path) -> None:
    src = write_market(tmp_path / "market", identities=2, images=2)
    partial = tmp_path / ".out.maskreid-partial"
    partial.mkdir()
    (partial / ".resume").symlink_to(treasure)
    with pytest.raises(ShardError, match="is a link"):
        convert_market1501(src, tmp_path / "out")
    assert len(whole(treasure)) == 5


def test_another_users_partial_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that one user makes, seen by another: as root over a user's, and as a user over root's."""
    src = write_market(tmp_path / "market", identities=2, images=2)
    (tmp_path / ".out.maskreid-partial").mkdir()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 0 if me else 65534)
    with pytest.raises(ShardError, match=f"belongs to user {me}; remove it"):
        convert_market1501(src, tmp_path / "out")
    assert list((tmp_path / ".out.maskreid-partial").iterdir()) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["resume", "index", "manifest", "part"])
def test_a_split_may_have_any_name(tmp_path: Path, split: str) -> None:
    """Even that of what an unfinished conversion keeps beside its splits."""
    for number in range(4):
        Image.new("RGB", (16, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [f"{n}.png,{n // 2 + 1},{n % 2 + 1},{split if n < 2 else 'train'}" for n in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,pid,camid,split", *rows]) + "\n")
    status, output = run("convert", "csv", tmp_path / "list.csv", tmp_path / "out", "--on-bad-mask", "full")
    assert status == 0, output
    assert sorted(open_shards(tmp_path / "out").splits) == sorted([split, "train"])
    assert (
        not verify(tmp_path / "out")
        and len(open_shards(tmp_path / "out").split(split).read_many([0, 1])) == 2
    )


# Caches and galleries.


def test_a_cache_deletes_its_own_files_alone(converted: Path, tmp_path: Path, precious: Path) -> None:
    cache = tmp_path / "backups"
    cache.mkdir()
    (cache / "holidays.tar").write_bytes(PRECIOUS)
    (cache / ("0" * 40 + ".tar")).symlink_to(precious)
    (cache / ("1" * 40 + ".tar")).write_bytes(PRECIOUS)  # as one of ours: goes
    with serving(converted) as server:
        split = open_shards(server.url, cache=cache, cache_bytes=1).split("train")
        for number in range(0, len(split), 3):
            split.read(number)
    assert (cache / "holidays.tar").read_bytes() == PRECIOUS == precious.read_bytes()
    assert (cache / ("0" * 40 + ".tar")).is_symlink() and not (cache / ("1" * 40 + ".tar")).exists()


def test_a_cache_full_of_links_harms_nobody(converted: Path, tmp_path: Path, precious: Path) -> None:
    with serving(converted) as server:
        shards = open_shards(server.url, cache=tmp_path / "cache")
        store, entry = shards.store, shards.split("train").entry.shards[0]
        path: Path = store.path_of(entry)  # type: ignore[attr-defined]
        path.with_suffix(".partial").symlink_to(precious)
        shards.split("train").read(0)
        assert precious.read_bytes() == PRECIOUS and path.is_file()
        path.unlink()
        path.with_suffix(".lock").unlink()
        path.with_suffix(".lock").symlink_to(precious)
        with pytest.raises(ShardError, match=rf"{path.with_suffix('.lock')}: .*is a link"):
            open_shards(server.url, cache=tmp_path / "cache").split("train").read(0)
    assert precious.read_bytes() == PRECIOUS


def test_a_gallery_with_links_is_not_written(tmp_path: Path, precious: Path) -> None:
    gallery = Gallery.create(tmp_path / "gallery", 5, Model("test", 3, "ab" * 32))
    gallery.append(np.ones((2, 5), np.float32), ["a", "b"], [1, 2], [1, 1])
    gallery.close()
    (rows,) = (tmp_path / "gallery").glob("rows-*.f32")
    data = rows.read_bytes() + PRECIOUS
    precious.write_bytes(data)
    rows.unlink()
    rows.symlink_to(precious)
    with pytest.raises(OSError, match="is a link"):
        Gallery.open(tmp_path / "gallery", writing=True)
    assert precious.read_bytes() == data
