"""The program: exit statuses, and the one line that bad input gets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from market import write_market
from program import run

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "launch" / "recipes" / "walkers_demo.toml"


def first(folder: Path, part: str = "bounding_box_train") -> Path:
    return sorted((folder / part).iterdir())[0]


def test_convert(tmp_path: Path) -> None:
    status, output = run(
        "convert", "market1501", write_market(tmp_path / "src", identities=3, images=2), tmp_path / "out"
    )
    assert status == 0
    assert "train: 7 images" in output
    status, output = run("convert", "market1501", tmp_path / "src", tmp_path / "out")
    assert status == 2
    assert "already" in output or "not empty" in output


def remove_folder(src: Path) -> None:
    (src / "query").rename(src / "quiery")


def misname(src: Path) -> None:
    first(src).rename(src / "bounding_box_train" / "person1.jpg")


def empty_folder(src: Path) -> None:
    for path in (src / "query").iterdir():
        path.unlink()


def truncate(src: Path) -> None:
    path = first(src)
    path.write_bytes(path.read_bytes()[:-200])


def drop_mask(src: Path) -> None:
    first(src, "bounding_box_train_seg").unlink()


def colour_mask(src: Path) -> None:
    Image.new("RGB", (16, 32), (192, 128, 128)).save(first(src, "bounding_box_train_seg"))


def empty_mask(src: Path) -> None:
    Image.new("L", (16, 32)).save(first(src, "bounding_box_train_seg"))


@pytest.mark.parametrize(
    ("spoil", "word", "policy_helps"),
    [
        (remove_folder, "query", False),
        (misname, "person1.jpg", False),
        (empty_folder, "query", False),
        (truncate, "0001_c1s1_000001_01.jpg", False),
        (drop_mask, "0001_c1s1_000001_01", True),
        (colour_mask, "0001_c1s1_000001_01.png", True),
        (empty_mask, "0001_c1s1_000001_01.png", True),
    ],
)
def test_bad_data_is_one_line_and_nothing_half_written(
    tmp_path: Path, spoil: Callable[[Path], None], word: str, policy_helps: bool
) -> None:
    src = write_market(tmp_path / "src", identities=3, images=2)
    spoil(src)
    status, output = run("convert", "market1501", src, tmp_path / "out")
    assert status == 2
    assert output.count("\n") == 1
    assert word in output
    # Shards that were finished stay, hidden; nothing else does.
    left = {path.name for path in tmp_path.iterdir()} - {"src"}
    assert left == ({".out.maskreid-partial"} if "finished shard" in output else set())
    for policy, images in (("full", 7), ("skip", 6)):
        status, output = run("convert", "market1501", src, tmp_path / policy, "--on-bad-mask", policy)
        assert status == (0 if policy_helps else 2)
        if policy_helps:
            assert f"train: {images} images" in output
            assert "1 bad" in output


def test_mask_policy_of_a_recipe(tmp_path: Path) -> None:
    src = write_market(tmp_path / "src", identities=3, images=2)
    empty_mask(src)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "t"\n[data]\nshards = "s"\non_bad_mask = "skip"\n')
    status, output = run("convert", "market1501", src, tmp_path / "out", "--recipe", recipe)
    assert status == 0
    assert "train: 6 images" in output


def test_recipe_prints_the_whole_configuration_or_names_the_key() -> None:
    status, output = run("recipe", RECIPE, "--set", "seed=7")
    assert status == 0
    assert json.loads(output)["seed"] == 7
    status, output = run("recipe", RECIPE, "--set", "optimizer.weight_deacy=1")
    assert status == 2
    assert "optimizer.weight_deacy; did you mean optimizer.weight_decay?" in output


def test_evaluate_without_a_checkpoint(tmp_path: Path) -> None:
    status, output = run("evaluate", tmp_path / "nowhere", ROOT / "shards" / "walkers")
    assert status == 2
    assert "no usable checkpoint" in output
    assert output.count("\n") == 1


def test_evaluate_without_shards(tmp_path: Path) -> None:
    status, output = run("evaluate", tmp_path, tmp_path / "shards")
    assert status == 2
    assert "shards" in output
    assert output.count("\n") == 1


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_refused_input_leaves_nothing_behind(tmp_path: Path) -> None:
    """No command makes the folders of its output before its input is accepted."""
    new, walkers = tmp_path / "new" / "folder", ROOT / "shards" / "walkers"
    (tmp_path / "empty").mkdir()
    before = everything(tmp_path)
    for command in (
        ("evaluate", tmp_path / "none", walkers, "--report", new / "r.html", "--output", new / "f.json"),
        ("evaluate", tmp_path / "empty", tmp_path / "none", "--report", new / "r.html"),
        ("masks", tmp_path / "none", "--output", new),
        ("stats", tmp_path / "none", "--output", new / "s.png"),
        ("stats", walkers, "--split", "none", "--output", new / "s.png"),
        ("segment", "market1501", tmp_path / "none", new),
        ("convert", "market1501", tmp_path / "none", new),
        ("bench", "convert", "--source", tmp_path / "none", "--output", new / "c.csv"),
        ("bench", "loader", "--shards", tmp_path / "none", "--output", new),
        ("bench", "loss", "--kernel", "none", "--output", new),
        ("train", RECIPE, "--runs", new, "--set", "data.shards=none"),
        ("demo", "--recipe", RECIPE, "--runs", new, "--set", "data.shards=none"),
    ):
        status, output = run(*command)
        assert status == 2 and output.count("\n") == 1, (command, output)
        assert everything(tmp_path) == before, command


def test_output_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    walkers = ROOT / "shards" / "walkers"
    src = write_market(tmp_path / "src", identities=3, images=2)
    before = everything(tmp_path)
    for command in (
        ("evaluate", tmp_path, walkers, "--report", below / "r.html"),
        ("masks", walkers, "--output", below),
        ("stats", walkers, "--output", below / "s.png"),
        ("stats", walkers, "--output", tmp_path),
        ("convert", "market1501", src, below, "--segment", "fcn_resnet50", "--masks", tmp_path / "masks"),
        ("segment", "market1501", src, below, "--weights", tmp_path / "file"),
    ):
        status, output = run(*command)
        assert status == 2 and output.count("\n") == 1, (command, output)
        assert str(command[-1] if command[0] not in ("convert", "segment") else below) in output
        assert everything(tmp_path) == before, command
