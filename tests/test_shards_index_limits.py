"""Numbers that the index cannot hold, names that a terminal cannot show, and which data set a folder is."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from market import write_market
from maskreid_shards import Layout, Source, open_shards, scan_dukemtmc, scan_folder, scan_market1501
from maskreid_shards.index_limits import MAX_CAMID, MAX_PID
from maskreid_shards.layouts.published import with_published
from program import run
from test_shards_layouts import write

FULL = ("--on-bad-mask", "full", "--workers", 1)


def listed(folder: Path, *pid_and_camid: tuple[int, int]) -> Path:
    rows = ["path,pid,camid,split"]
    for number, (pid, camid) in enumerate(pid_and_camid):
        write(folder / f"a/{number}.jpg", number)
        rows.append(f"a/{number}.jpg,{pid},{camid},{'gallery' if number else 'query'}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"


def test_cameras_that_do_not_fit_are_numbered_anew(tmp_path: Path) -> None:
    table = listed(tmp_path, (7, 192168001101), (7, 3), (8, MAX_CAMID + 1))
    status, output = run("convert", "csv", table, tmp_path / "out", *FULL)
    assert status == 0 and f"3 is 1, {MAX_CAMID + 1} is 2, 192168001101 is 3" in output, output
    shards = open_shards(tmp_path / "out")
    assert shards.split("query").camids.tolist() == [3]
    assert shards.split("gallery").camids.tolist() == [1, 2]


def test_numbers_that_fit_stay(tmp_path: Path) -> None:
    table = listed(tmp_path, (MAX_PID, MAX_CAMID), (MAX_PID, 1))
    status, output = run("convert", "csv", table, tmp_path / "out", *FULL)
    assert status == 0 and "anew" not in output
    query = open_shards(tmp_path / "out").split("query")
    assert query.pids.tolist() == [MAX_PID] and query.camids.tolist() == [MAX_CAMID]
    assert run("verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("pid", [MAX_PID + 1, 2**63, 202311230911015512345, 10**40])
def test_an_identity_that_does_not_fit_is_one_line(tmp_path: Path, pid: int) -> None:
    table = listed(tmp_path, (1, 1), (pid, 2))
    status, output = run("convert", "csv", table, tmp_path / "out", *FULL)
    assert status == 2 and f"identity {pid}: pids have at most 18 digits" in output
    assert output.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_camera_in_the_folder_layout_s_names(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"src/train/a/19216800110{number}_x.jpg", number)
    write(tmp_path / "src2/train/a/²_x.jpg")
    options = ("--camera", r"^(\d+)_", *FULL)
    status, output = run("convert", "folder", tmp_path / "src", tmp_path / "out", *options)
    assert status == 0 and "192168001100 is 1, 192168001101 is 2" in output
    status, output = run("convert", "folder", tmp_path / "src2", tmp_path / "o", "--camera", "^(.)_", *FULL)
    assert status == 2 and "no camera (from 1)" in output


@pytest.mark.parametrize("what", ["stray", "leftover", "identity", "image", "mask"])
def test_names_that_are_no_utf_8(tmp_path: Path, what: str) -> None:
    """The runner's output is strict UTF-8, as many terminals are."""
    odd = os.fsdecode("说明".encode("gbk"))
    src = tmp_path / "src"
    identity, image = (odd if what == "identity" else "0001"), (odd if what == "image" else "a")
    write(src / "train" / identity / f"{image}.jpg")
    if what in ("stray", "leftover"):
        name = f"{odd}.txt" if what == "stray" else f"deeper/{odd}.jpg"
        (src / "train/0001" / name).parent.mkdir(exist_ok=True)
        (src / "train/0001" / name).write_bytes(b"x")
    masks = ("--masks", tmp_path / odd / "{stem}.png") if what == "mask" else ()
    status, output = run("convert", "folder", src, tmp_path / "out", *masks, *FULL)
    assert status == 0 and "fingerprint" in output, output
    if what != "mask":
        assert "\\udc" in output
    status, output = run("convert", "folder", src, tmp_path / "new", *masks, "--workers", 1)
    assert status == 2 and output.count("\n") == 1 and "no mask file" in output


def test_a_name_is_matched_as_a_whole(tmp_path: Path) -> None:
    """Words inside a name, and names of other data sets that hold one's own."""
    for name in ("supermarket", "market", "Market-1501-attribute"):
        layout = scan_market1501(write_market(tmp_path / name / "reid"))
        assert not layout.published, name
    for name in ("Market-1501-v15.09.15", "market1501", "Market_1501"):
        assert scan_market1501(write_market(tmp_path / name)).differences()
    for name, known in (("Occluded_Duke", False), ("DukeMTMC-reID", True), ("P-DukeMTMC-reid", False)):
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            write(tmp_path / name / folder / "0001_c1_f0000001.jpg")
        assert bool(scan_dukemtmc(tmp_path / name).published) == known
    status, output = run(
        "convert", "dukemtmc", tmp_path / "Occluded_Duke", tmp_path / "out", "--expect-published", *FULL
    )
    assert status == 2 and "does not say a data set" in output


@pytest.mark.parametrize(("train", "known"), [(1000, True), (985, True), (945, False), (1055, False)])
def test_near_counts_say_it_too(tmp_path: Path, train: int, known: bool) -> None:
    """Occluded-Duke has Duke's gallery, but 5 % fewer train images."""
    source = Source(tmp_path / "a.jpg", None, 1, 1, "train", "k", "a.jpg")
    splits = {"train": (source,) * train, "query": (replace(source, split="query"),) * 100}
    published = {"train images": 1000, "query images": 100, "query identities": 1}
    layout = with_published(Layout("x", splits), tmp_path, ("y",), published)
    assert bool(layout.published) == known
    assert not with_published(Layout("x", splits), tmp_path, ("y",), {"query images": 100}).published


def test_a_rule_for_int64() -> None:
    assert MAX_PID < np.iinfo(np.int64).max and len(str(MAX_PID)) == 18


def test_published_counts_of_layumi_s_tree(tmp_path: Path) -> None:
    from maskreid_shards import scan_layumi
    from test_shards_leftovers import layumi

    layout = scan_layumi(layumi(tmp_path / "Market-1501/pytorch", whole=False))
    assert "train images: published 12936, found 4" in layout.differences()
    assert not scan_folder(tmp_path / "Market-1501/pytorch").published
