"""Links, pipes and other people's folders that lie where this project writes or deletes: nothing outside
changes, and what is refused is named."""

import ast
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faulty_server import serving
from market import png, write_market
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
from test_shards_convert import tree
from test_shards_layouts import write_dgd, write_duke

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


# Images and masks that are links.


def outside(tmp_path: Path, path: Path) -> Path:
    """A link in place of a file, to a copy of it that is not in the data set."""
    private = tmp_path / "private"
    private.mkdir(exist_ok=True)
    target = private / f"{len(list(private.iterdir()))}{path.suffix}"
    path.rename(target)
    path.symlink_to(target)
    return target


def market(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    src = write_market(tmp_path / "market", identities=2, images=2)
    return src, sorted(src.glob("*/*.jpg")), sorted(src.glob("*_seg/*.png"))


def duke(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    src = write_duke(tmp_path / "duke")
    return src, sorted(src.glob("*/*.jpg")), []


def dgd(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    src = write_dgd(tmp_path / "dgd")
    return src, sorted(src.glob("cam_*/*.*")), []


def folder(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    return identities(tmp_path / "folder")


def layumi(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    for part in ("train_all", "query", "gallery"):
        identities(tmp_path / "layumi" / part)
    src = tmp_path / "layumi"
    return src, sorted(src.glob("[tqg]*/0*/*.png")), sorted(src.glob("*_seg/*/*.png"))


def csv(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    src, images, _ = identities(tmp_path / "csv" / "images")
    rows = [f"images/{path.relative_to(src)},{path.parent.name},1,train" for path in images]
    (tmp_path / "csv" / "list.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
    return tmp_path / "csv" / "list.csv", images, []


def far_csv(tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    """A list with absolute paths of images and masks that lie elsewhere."""
    _, images, masks = identities(tmp_path / "far" / "images")
    rows = [f"{one},{one.parent.name},1,train,{mask}" for one, mask in zip(images, masks, strict=True)]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("\n".join(["path,pid,camid,split,mask", *rows]))
    return tmp_path / "lists" / "list.csv", images, masks


def identities(src: Path) -> tuple[Path, list[Path], list[Path]]:
    """A folder per identity, with masks beside it."""
    masks = src.with_name(f"{src.name}_seg")
    for pid in (1, 2):
        for number in range(2):
            for path, data in ((src, png(pid)), (masks, png(200))):
                (path / f"000{pid}").mkdir(parents=True, exist_ok=True)
                (path / f"000{pid}" / f"{number}_c1.png").write_bytes(data)
    return src, sorted(src.glob("*/*.png")), sorted(masks.glob("*/*.png"))


DataSet = Callable[[Path], tuple[Path, list[Path], list[Path]]]
DATA_SETS: dict[str, tuple[str, DataSet]] = {
    "market1501": ("market1501", market),
    "dukemtmc": ("dukemtmc", duke),
    "dgd": ("dgd", dgd),
    "folder": ("folder", folder),
    "layumi": ("layumi", layumi),
    "csv": ("csv", csv),
    "far csv": ("csv", far_csv),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_links_out_of_the_data_set_are_refused_and_followed_where_allowed(name: str, tmp_path: Path) -> None:
    layout, write = DATA_SETS[name]
    src, images, masks = write(tmp_path)
    command = ("convert", layout, src, tmp_path / "out", "--workers", 1, "--on-bad-mask", "full")
    assert run(*command)[0] == 0
    before = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for what, path in (("image", images[0]), ("mask", masks[0] if masks else None)):
        if path is None:
            continue
        target = outside(tmp_path, path)
        status, output = run(*command)
        assert status == 2 and output.count("\n") == 1, output
        assert f"{path}: is a link to {target}, out of the data set; 1 {what} lie" in output
        assert "--follow-links" in output and not (tmp_path / "out").exists()
        target.rename(path)
    outside(tmp_path, images[0])
    counted = "1 image"
    if masks:
        outside(tmp_path, masks[0])
        counted += " and 1 mask"
    status, output = run(*command, "--follow-links")
    assert status == 0 and f"{counted} lie behind links out of the data set, which were followed" in output
    assert tree(tmp_path / "out") == before


def test_every_layout_names_its_folders() -> None:
    """Or its links out would be held against the folders of the images alone."""
    for path in Path("shards/maskreid_shards/layouts").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Layout":
                assert "roots" in {keyword.arg for keyword in node.keywords}, path


@pytest.mark.parametrize("linked", ["data set", "within", "to nothing", "mask folder given"])
def test_links_that_do_not_leave_the_data_set(tmp_path: Path, linked: str) -> None:
    src, images, masks = market(tmp_path)
    more: tuple[object, ...] = ()
    if linked == "data set":
        (tmp_path / "elsewhere").mkdir()
        src = src.rename(tmp_path / "elsewhere" / "data")
        (tmp_path / "market").symlink_to(src)
        src = tmp_path / "market"
    elif linked == "within":
        (src / "originals").mkdir()
        for path in (images[0], masks[0]):
            path.rename(src / "originals" / path.name)
            path.symlink_to(Path("..", "originals", path.name))
    elif linked == "to nothing":
        images[0].unlink()
        images[0].symlink_to(tmp_path / "private" / "gone.jpg")
        more = ("--on-bad-image", "skip")
    else:
        (tmp_path / "own").mkdir()
        for path in masks:
            place = tmp_path / "own" / path.parent.name.removesuffix("_seg")
            place.mkdir(exist_ok=True)
            path.rename(place / path.name)
        (tmp_path / "masks").symlink_to(tmp_path / "own")
        more = ("--masks", tmp_path / "masks")
    status, output = run("convert", "market1501", src, tmp_path / "out", "--workers", 1, *more)
    assert status == 0 and "behind links" not in output, output


@pytest.mark.parametrize("which", ["bounding_box_train", "query_seg"])
def test_a_linked_folder_counts_all_that_lies_in_it(tmp_path: Path, which: str) -> None:
    src, _, _ = market(tmp_path)
    (src / which).rename(tmp_path / "private")
    (src / which).symlink_to(tmp_path / "private")
    count = len(list((tmp_path / "private").iterdir()))
    what = "mask" if which.endswith("_seg") else "image"
    status, output = run("convert", "market1501", src, tmp_path / "out", "--workers", 1)
    assert status == 2 and output.count("\n") == 1, output
    assert f"{src / which}: is a link to {tmp_path / 'private'}, out of" in output
    assert f"{count} {what}s lie behind" in output
    status, output = run("convert", "market1501", src, tmp_path / "out", "--workers", 1, "--follow-links")
    assert status == 0 and f"{count} {what}s lie behind links" in output, output


def test_merged_data_sets_have_their_own_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, images, _ = market(tmp_path / "a")
    second, _, _ = folder(tmp_path / "b")
    parts = (f"a=market1501:{first}", f"b=folder:{second}")
    command = ("convert", "merge", tmp_path / "out", *parts, "--workers", 1)
    path = next(path for path in images if path.parent.name == "bounding_box_train")
    target = outside(tmp_path, path)
    status, output = run(*command)
    assert status == 2 and f"{path}: is a link to {target}" in output, output
    assert run(*command, "--follow-links")[0] == 0


def test_a_file_of_many_images_that_is_a_link(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    src = tmp_path / "lmdb"
    with lmdb.open(str(src)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"00001_1_0", png(1))
        transaction.put(b"00001_1_1", png(2))
    target = outside(tmp_path, src / "data.mdb")
    command = ("convert", "lmdb", src, tmp_path / "out", "--workers", 1, "--on-bad-mask", "full")
    status, output = run(*command)
    assert status == 2 and f"{src / 'data.mdb'}: is a link to {target}" in output, output
    status, output = run(*command, "--follow-links")
    assert status == 0 and "2 images lie behind links" in output, output


def test_images_behind_links_are_not_segmented_either(tmp_path: Path) -> None:
    src, images, _ = folder(tmp_path)
    target = outside(tmp_path, images[0])
    state = tmp_path / "weights.pt"
    state.write_bytes(b"none")
    flags = ("--model", "fcn_resnet50", "--weights", state, "--device", "cpu")
    status, output = run("segment", "folder", src, tmp_path / "masks", *flags)
    assert status == 2 and f"{images[0]}: is a link to {target}" in output, output
    status, output = run("segment", "folder", src, tmp_path / "masks", *flags, "--follow-links")
    assert status == 2 and "not a file of weights" in output, output
