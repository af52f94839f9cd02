"""Data of one's own as it lies: lists of other tools, identities and cameras by name, a pattern for
names."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from market import jpeg, png
from maskreid_shards import (
    Layout,
    ShardError,
    convert,
    open_shards,
    scan_csv,
    scan_cuhk03_np,
    scan_folder,
)
from maskreid_shards.layouts.numbering import camera_numbers, pid_numbers

HEADER = ["path", "pid", "camid", "split"]
ROWS = [
    ["im/a_1.jpg", "1", "1", "train"],
    ["im/b_1.jpg", "2", "2", "train"],
    ["im/c_1.jpg", "3", "1", "query"],
]


def image(path: Path, seed: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(seed))
    mask = path.parent.with_name(f"{path.parent.name}_seg") / f"{path.stem}.png"
    mask.parent.mkdir(exist_ok=True)
    mask.write_bytes(png(seed))
    return path


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    for number, row in enumerate(ROWS):
        image(folder / row[0], number)
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return folder / "list.csv"


def text(header: list[str], rows: list[list[str]], separator: str = ",", end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in [header, *rows])


def found(layout: Layout) -> list[tuple[str, int, int, str]]:
    return [(source.name, source.pid, source.camid, source.split) for source in layout.sources()]


PLAIN = [("im/a_1.jpg", 1, 1, "train"), ("im/b_1.jpg", 2, 2, "train"), ("im/c_1.jpg", 3, 1, "query")]
DIALECTS: dict[str, str] = {
    "plain": text(HEADER, ROWS),
    "semicolons": text(HEADER, ROWS, ";"),
    "tabs": text(HEADER, ROWS, "\t"),
    "blanks": text(HEADER, ROWS, " , "),
    "line ends": text(HEADER, ROWS, end="\r\n"),
    "quotes": text(HEADER, [[f'"{value}"' for value in row] for row in ROWS], ", "),
    "capitals": text(["Path", "PID", "CamID", "SPLIT"], ROWS),
    "another order": text(HEADER[::-1], [row[::-1] for row in ROWS]),
    "an index": text(["", *HEADER], [[str(n), *row] for n, row in enumerate(ROWS)]),
    "floats": text(HEADER, [[a, f"{b}.0", f"{c}.0", d] for a, b, c, d in ROWS]),
    "empty lines": text(HEADER, [ROWS[0], [""] * 4, *ROWS[1:], [""]]),
    "empty first": "\n \n" + text(HEADER, ROWS),
    "back-slashes": text(HEADER, [[row[0].replace("/", "\\"), *row[1:]] for row in ROWS]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_lists_of_other_tools(tmp_path: Path, dialect: str, encoding: str) -> None:
    layout = scan_csv(written(tmp_path, DIALECTS[dialect], encoding))
    assert found(layout) == PLAIN and not layout.numbering and not layout.notes
    assert all(source.path.is_file() and source.mask_path is not None for source in layout.sources())


def test_a_file_whose_name_holds_a_back_slash(tmp_path: Path) -> None:
    image(tmp_path / "im" / "a\\1.jpg")
    layout = scan_csv(written(tmp_path, text(HEADER, [["im/a\\1.jpg", "1", "1", "train"]])))
    assert found(layout)[0][0] == "im/a\\1.jpg"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (text(["label", *HEADER[::2], "split"], ROWS), ("no column pid", "is it label? Rename it")),
        (text(HEADER[:3], ROWS), ("no column split", "write train everywhere")),
        (text([*HEADER[:2], "split"], ROWS), ("no column camid", "write 1 everywhere")),
        (text([*HEADER, "pid"], ROWS), ("two columns pid",)),
        (text(HEADER, [["im/a_1.jpg", "", "1", "train"]]), ("line 2", "give both")),
        (text(HEADER, [["im/a_1.jpg", "-2", "1", "train"]]), ("line 2", "pid -2")),
        (text(HEADER, [["im/a_1.jpg", "0", "1", "query"]]), ("line 2", "pid 0")),
        (text(HEADER, [["im/a_1.jpg", "1", "-1", "train"]]), ("line 2", "camid -1")),
        (text(HEADER, []), ("lists no image",)),
    ],
)
def test_lists_that_say_too_little(tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ShardError) as caught:
        scan_csv(written(tmp_path, content))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_folder_and_other_text_in_place_of_a_list(tmp_path: Path) -> None:
    written(tmp_path, text(HEADER, ROWS))
    with pytest.raises(ShardError, match=r"is a folder; give the CSV file; is it .*list\.csv"):
        scan_csv(tmp_path)
    (tmp_path / "list.csv").write_bytes("path,pid\né,1".encode("latin-1"))
    with pytest.raises(ShardError, match=r"not CSV in UTF-8 .*; save it as UTF-8"):
        scan_csv(tmp_path / "list.csv")


def test_names_and_cameras_from_0_are_numbered_and_the_manifest_has_the_mapping(tmp_path: Path) -> None:
    people = ["person_10", "person_9", "a guest"]
    rows = [[row[0], people[n], str(n), row[3]] for n, row in enumerate(ROWS)]
    report = convert(scan_csv(written(tmp_path, text(HEADER, rows))), tmp_path / "out", dataset="x")
    assert report.manifest.numbering == {
        "pid": {"person_9": 1, "person_10": 2, "a guest": 3},
        "camid": {"0": 1, "1": 2, "2": 3},
    }
    opened = open_shards(tmp_path / "out")
    assert opened.manifest == report.manifest
    pairs = opened.split("train").read_many([0, 1])
    assert {(pair.pid, pair.image) for pair in pairs} == {(2, jpeg(0)), (1, jpeg(1))}
    assert "3 identities are numbered from 1 (person_9 is 1, person_10 is 2, a guest is 3)" in " ".join(
        report.notes
    )
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert stored["numbering"]["camid"] == {"0": 1, "1": 2, "2": 3}


@pytest.mark.parametrize(
    ("train", "others", "expected", "anew"),
    [
        ("1 2", "3 0 -1", {"1": 1, "2": 2, "3": 3, "0": 0, "-1": -1}, False),
        ("0 1", "2 -1", {"0": 1, "1": 2, "2": 3, "-1": -1}, True),
        ("07 7.0", "8", {"07": 7, "7.0": 7, "8": 8}, False),
        ("0 00", "5", {"0": 1, "00": 1, "5": 2}, True),
        ("b10 b2", "a -1", {"b2": 1, "b10": 2, "a": 3, "-1": -1}, True),
        ("", "0 4", {"0": 0, "4": 4}, False),
    ],
)
def test_numbers_of_identities(train: str, others: str, expected: dict[str, int], anew: bool) -> None:
    numbers = pid_numbers(train.split(), others.split())
    assert numbers.of == expected and numbers.anew == anew


@pytest.mark.parametrize(
    ("texts", "expected"),
    [("1 3", {"1": 1, "3": 3}), ("0 4 2", {"0": 1, "2": 2, "4": 3}), ("west east", {"east": 1, "west": 2})],
)
def test_numbers_of_cameras(texts: str, expected: dict[str, int]) -> None:
    assert camera_numbers(texts.split()).of == expected


PATTERN = r"(?P<pid>\w+?)_c(?P<camid>\d+)_(?P<frame>\d+)"


def names_of(layout: Layout, split: str = "train") -> list[tuple[str, int, int]]:
    return [(source.name, source.pid, source.camid) for source in layout.splits[split]]


def test_a_flat_folder_with_a_pattern(tmp_path: Path) -> None:
    for name in ("bob_c1_10", "bob_c1_9", "bob_c0_1", "ann_c1_1", "odd"):
        image(tmp_path / "own" / f"{name}.jpg", len(name))
    layout = scan_folder(tmp_path / "own", pattern=PATTERN)
    assert names_of(layout) == [
        ("own/bob_c0_1.jpg", 2, 1),
        ("own/ann_c1_1.jpg", 1, 2),
        ("own/bob_c1_9.jpg", 2, 2),
        ("own/bob_c1_10.jpg", 2, 2),
    ]
    report = convert(layout, tmp_path / "out", dataset="own")
    assert report.manifest.masks.bad == 0 and "own: 1 images not converted: odd.jpg" in report.lines()
    assert report.manifest.numbering["pid"] == {"ann": 1, "bob": 2}


@pytest.mark.parametrize("named", [True, False])
def test_splits_by_folder_or_by_a_group(tmp_path: Path, named: bool) -> None:
    for name in (
        "bounding_box_train/x/1_c1_1",
        "query/3_c2_1",
        "bounding_box_test/-1_c1_1",
        "bounding_box_test/3_c12_1",
    ):
        image(tmp_path / "own" / f"{name}.jpg", len(name))
    pattern = r"(?P<split>bounding_box_\w+|query)/.*?(?P<pid>-?\d+)_c(?P<camid>\d+)_"
    layout = scan_folder(tmp_path / "own", pattern=pattern if named else pattern.replace("?P<split>", "?:"))
    assert names_of(layout) == [("bounding_box_train/x/1_c1_1.jpg", 1, 1)]
    assert names_of(layout, "query") == [("query/3_c2_1.jpg", 3, 2)]
    assert sorted(names_of(layout, "gallery")) == [
        ("bounding_box_test/-1_c1_1.jpg", -1, 1),
        ("bounding_box_test/3_c12_1.jpg", 3, 12),
    ]
    assert [s.mask_path for s in layout.splits["train"]] == [
        tmp_path.resolve() / "own/bounding_box_train_seg/x/1_c1_1.png"
    ]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(\d+)", "name a group pid"),
        (r"(?P<pid>\d+)_(?P<cam>\d+)", "name a group pid"),
        (r"(?P<pid>\d+", "missing \\)"),
        (r"(?P<pid>x\d+)", r"no image that '\(\?P<pid>x\\d\+\)' finds, not even 1_c1_1.jpg"),
    ],
)
def test_patterns_that_do_not_fit(tmp_path: Path, pattern: str, words: str) -> None:
    image(tmp_path / "own" / "1_c1_1.jpg")
    with pytest.raises(ShardError, match=words):
        scan_folder(tmp_path / "own", pattern=pattern)
    with pytest.raises(ShardError, match="--camera beside --pattern"):
        scan_folder(tmp_path / "own", pattern=pattern, camera="c")


def _in_train_too(folder: Path) -> None:
    image(folder / "query" / "1_c1_1.jpg")


def _junk_in_train(folder: Path) -> None:
    image(folder / "train" / "-1_c1_1.jpg")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_in_train_too, "is in train and in query"), (_junk_in_train, "belong in the gallery")],
)
def test_identities_where_they_cannot_be(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    image(tmp_path / "own" / "train" / "1_c1_1.jpg")
    spoil(tmp_path / "own")
    with pytest.raises(ShardError, match=words):
        scan_folder(tmp_path / "own", pattern=r"/(?P<pid>-?\d+)_c")


@pytest.mark.parametrize(
    ("folder", "given", "words"),
    [
        ("", "", "holds bounding_box_train itself; move its folders into one named labeled"),
        ("labelled", "", "rename it labeled"),
        ("detected", "", "no folder labeled, but detected; choose --boxes detected"),
        ("labeled", "labeled", "holds bounding_box_train itself; give .*cuhk03-np$"),
    ],
)
def test_cuhk03_np_under_other_names(tmp_path: Path, folder: str, given: str, words: str) -> None:
    src = tmp_path / "cuhk03-np"
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        image(src / folder / split / "0001_c1_1.png")
    with pytest.raises(ShardError, match=words):
        scan_cuhk03_np(src / given)


def test_images_beside_a_list_are_counted(tmp_path: Path) -> None:
    table = written(tmp_path, text(HEADER, ROWS[:1]))
    lines = convert(scan_csv(table), tmp_path / "out", dataset="x").lines()
    assert "im: 2 images not converted: b_1.jpg" in lines
    assert not any("MOST IMAGES" in line for line in lines)  # a list may choose


def test_the_layout_of_lists_and_folders_names_its_folders(tmp_path: Path) -> None:
    image(tmp_path / "own" / "flat.jpg")
    with pytest.raises(ShardError, match=r"of images as flat.jpg say where the identity stands"):
        scan_folder(tmp_path / "own")
