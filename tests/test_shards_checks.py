"""What no layout may hand to the writer: names that lead out of the data set, images twice, masks that are
their images; and what the report says of splits."""

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from market import png, write_market
from maskreid_shards import (
    Layout,
    MaskOptions,
    ShardError,
    convert,
    merge_train,
    open_shards,
    place_masks,
    scan_csv,
    scan_market1501,
)
from program import run
from test_shards_layouts import write


def listed(src: Path, *rows: str) -> Path:
    src.mkdir(parents=True, exist_ok=True)
    (src / "list.csv").write_text("\n".join(["path,pid,camid,split", *rows]) + "\n")
    return src / "list.csv"


def sources_in(out: Path) -> list[str]:
    with tarfile.open(open_shards(out).split("train").urls()[0]) as tar:
        members = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")]
        return sorted(json.load(member)["source"] for member in members if member is not None)


FORMS: dict[str, Callable[[Path], str]] = {
    "absolute": lambda path: str(path),
    "dots": lambda path: f"../data/images/{path.parent.name}/{path.name}",
    "both": lambda path: (
        str(path) if path.name == "0.png" else f"../data/images/{path.parent.name}/{path.name}"
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("below", ["", "images", "data/images"])
def test_absolute_paths_and_dots_are_relative_to_the_common_root(
    tmp_path: Path, form: str, below: str
) -> None:
    """The images are PNG: joined to the masks' folder, an absolute path would be the image itself."""
    paths = [write(tmp_path / f"data/images/{part}/{n}.png", n) for part in ("a", "b") for n in range(2)]
    for number, path in enumerate(paths):
        mask = tmp_path / "masks" / below / path.parent.name / path.name
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(png(number))
    table = listed(tmp_path / "lists", *(f"{FORMS[form](p)},{n + 1},1,train" for n, p in enumerate(paths)))
    options = ("--masks", tmp_path / "masks", "--workers", 1)
    status, output = run("convert", "csv", table, tmp_path / "out", *options)
    assert status == 0, output
    assert sources_in(tmp_path / "out") == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    train = open_shards(tmp_path / "out").split("train")
    assert {raw.pid: raw.mask for raw in train.read_many(range(4))} == {n + 1: png(n) for n in range(4)}


def test_relative_paths_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "1.png")
    listed(tmp_path, "./1.png,1,1,train")
    monkeypatch.chdir(tmp_path)
    (source,) = scan_csv(Path("list.csv")).splits["train"]
    assert source.name == "1.png" and source.mask_path == tmp_path.with_name(tmp_path.name + "_seg") / "1.png"


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png"])
def test_a_name_that_leads_out_is_refused_where_it_is_joined(tmp_path: Path, name: str) -> None:
    first = scan_market1501(write_market(tmp_path / "m")).splits["train"][0]
    layout = Layout("own", {"train": (replace(first, name=name),)})
    for location in (str(tmp_path), "m/{folder}/{name}"):
        with pytest.raises(ShardError, match="relative to the data set"):
            place_masks(layout, MaskOptions(location))
    with pytest.raises(ShardError, match="relative to the data set"):
        convert(layout, tmp_path / "out", dataset="x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["path", "column", "symbolic link", "hard link", "copy"])
def test_a_mask_that_is_its_image_is_an_error(tmp_path: Path, how: str) -> None:
    image = tmp_path / "a/1.png"
    image.parent.mkdir()
    image.write_bytes(png(1))  # grey: as a mask it would be sound
    other = tmp_path / "masks/a/1.png"
    other.parent.mkdir(parents=True)
    if how == "symbolic link":
        other.symlink_to(image)
    elif how == "hard link":
        os.link(image, other)
    elif how == "copy":
        other.write_bytes(image.read_bytes())
    table = listed(tmp_path, "a/1.png,1,1,train")
    if how == "column":
        table.write_text("path,pid,camid,split,mask\na/1.png,1,1,train,a/1.png\n")
    masks = () if how == "column" else ("--masks", tmp_path if how == "path" else tmp_path / "masks")
    for policy in ("fail", "full", "skip"):
        options = ("--on-bad-mask", policy, "--workers", 1)
        status, output = run("convert", "csv", table, tmp_path / "out", *masks, *options)
        assert status == 2 and "say where the masks are (--masks)" in output, output
        assert len(output.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("a/1.png,1,1,train", "a/1.png,1,1,train"), ("line 3", "on line 2 already; keep one")),
        (("a/1.png,1,1,train", "a/./1.png,1,2,train"), ("line 3", "on line 2 already; keep one")),
        (("a/1.png,1,1,train", "a/1.png,2,1,train"), ("line 3", "as identity 1 and not 2")),
        (("a/1.png,1,1,train", "a/1.png,1,1,val"), ("line 3", "in train and not val")),
        (("a/1.png,1,1,train", "a/2.png,1,1,val"), ("line 3", "identity 1 is in train too")),
    ],
)
def test_lists_that_say_an_image_twice(tmp_path: Path, rows: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(ShardError) as caught:
        scan_csv(listed(tmp_path, *rows))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("split", ["galery", "gallary", "querry", "tarin", "traning"])
def test_a_misspelt_split(tmp_path: Path, split: str) -> None:
    write(tmp_path / "a/1.png")
    layout = scan_csv(listed(tmp_path, f"a/1.png,1,1,{split}"))
    with pytest.raises(ShardError, match=f"split '{split}': is it (gallery|query|train)"):
        convert(layout, tmp_path / "out", dataset="x", on_bad_mask="full")
    assert not (tmp_path / "out").exists()


def converted(tmp_path: Path, *rows: str) -> list[str]:
    for row in rows:
        write(tmp_path / row.partition(",")[0], len(row))
    layout = scan_csv(listed(tmp_path, *rows))
    return convert(layout, tmp_path / "out", dataset="x", on_bad_mask="full").lines()


def test_other_splits_and_images_in_two_of_them_are_named(tmp_path: Path) -> None:
    rows = ("a/1.png,1,1,query", "a/1.png,1,1,gallery", "a/2.png,1,2,gallery", "a/3.png,3,1,validation")
    lines = converted(tmp_path, *rows)
    assert "1 images are in query and in gallery" in lines
    assert any(
        line.startswith("split validation: neither training nor evaluation reads it") for line in lines
    )
    assert not any("EVALUATED" in line for line in lines)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (("a/1.png,1,1,query", "a/2.png,1,1,gallery"), "no query has an image of its identity, of another"),
        (("a/1.png,1,1,query", "a/2.png,2,2,gallery"), "no query has an image of its identity, of another"),
        (("a/1.png,1,1,query",), "there is no split gallery"),
        (("a/1.png,1,1,gallery",), "there is no split query"),
    ],
)
def test_nothing_to_evaluate_is_the_last_word(tmp_path: Path, rows: tuple[str, ...], why: str) -> None:
    assert any(
        line.startswith(f"NOTHING HERE CAN BE EVALUATED: {why}") for line in converted(tmp_path, *rows)[-2:]
    )


def test_queries_without_a_match_are_counted(tmp_path: Path) -> None:
    lines = converted(tmp_path, "a/1.png,1,1,query", "a/2.png,2,1,query", "a/3.png,1,2,gallery")
    assert "1 of 2 queries have no match of another camera in the gallery" in lines


def test_a_data_set_merged_twice(tmp_path: Path) -> None:
    src = write_market(tmp_path / "m")
    (tmp_path / "link").symlink_to(src)
    layouts = {"a": scan_market1501(src), "b": scan_market1501(tmp_path / "link")}
    with pytest.raises(ShardError, match="b: holds the same images as a; give each data set once"):
        merge_train(layouts)
    part = replace(layouts["b"], splits={"train": layouts["b"].splits["train"][1:]})
    with pytest.raises(ShardError, match="is in a and in b; give each data set once"):
        convert(merge_train({**layouts, "b": part}), tmp_path / "out", dataset="x")


@pytest.mark.parametrize("folders", [("a", "b"), ("x/own", "y/own")])
def test_a_copy_of_a_data_set_under_another_path_is_not_merged(
    tmp_path: Path, folders: tuple[str, str]
) -> None:
    first, second = (tmp_path / folder for folder in folders)
    src = write_market(first)
    shutil.copytree(src, second)
    layouts = {"a": scan_market1501(first), "b": scan_market1501(second)}
    with pytest.raises(ShardError, match="b: holds the same images as a; give each data set once"):
        merge_train(layouts)
    image = layouts["b"].splits["train"][0].path
    data = bytearray(image.read_bytes())
    image.with_name("0077_c1s1_000001_01.jpg").write_bytes(data)
    merged = merge_train({**layouts, "b": scan_market1501(second)})
    assert merged.warnings == ("25 OF THE 26 IMAGES OF b ARE IN a TOO, AS OTHER IDENTITIES",)
    for path in (second / "bounding_box_train").iterdir():  # the same names and sizes, other images
        path.write_bytes(path.read_bytes()[:-2] + b"xx")
    assert not merge_train({**layouts, "b": scan_market1501(second)}).warnings
