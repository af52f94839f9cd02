"""The tool behind `make golden`: it must notice what changed, and say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from golden import __main__ as program
from golden.comparison import Difference, compare, table
from golden.measurements import MeasurementError, market_folder, run

BEFORE = {"losses": {"a": "1", "b": "2"}, "conversion": {"c": "3"}}


def test_a_changed_and_a_missing_value_differ_and_a_new_one_does_not() -> None:
    after = {"losses": {"a": "1", "b": "changed", "new": "4"}}
    differences = compare(BEFORE, after)
    assert differences == [
        Difference("losses", "b", "2", "changed"),
        Difference("conversion", "c", "3", None),
    ]
    text = "\n".join(table(BEFORE, after, differences, "BASE"))
    assert "losses: b: was 2, is changed" in text and "conversion: c: was 3, is missing" in text
    assert text.endswith("BASE and the working tree DIFFER")
    assert compare(BEFORE, BEFORE) == []


def test_what_is_too_much_to_name_is_counted_by_kind() -> None:
    kinds = ["circle, chunked", "circle, dense"]
    before = {"losses": {f"{kind}, {rows} x 3, rank 0": "1" for kind in kinds for rows in range(10)}}
    lines = list(table(before, {}, compare(before, {}), "BASE"))
    assert "losses: and 8 more; all by kind: circle chunked 10, circle dense 10" in lines


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], int]:
    """The program with a single measurement: a value that each checkout is given."""
    base = tmp_path / "checkout"

    @contextmanager
    def checked_out(commit: str, folder: Path) -> Iterator[Path]:
        yield base

    def main(base_value: str, head_value: str) -> int:
        values = {base: base_value, program.ROOT: head_value}
        measurements = {"losses": lambda checkout, work, market: {"value": values[checkout]}}
        monkeypatch.setattr(program, "MEASUREMENTS", measurements)
        monkeypatch.setattr(program, "checked_out", checked_out)
        monkeypatch.setattr(program, "market_folder", lambda shards, folder: folder)
        return program.main(["BASE"])

    return main


def test_exit_status(measured: Callable[[str, str], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert measured("0.5", "0.5") == 0
    assert "are equal, bit for bit" in capsys.readouterr().out
    assert measured("0.5", "0.25") == 1
    assert "losses: value: was 0.5, is 0.25" in capsys.readouterr().out


def test_an_unknown_commit_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["no-such-commit"]) == 2
    assert capsys.readouterr().err.startswith("error: no-such-commit: no such commit here")


def test_a_program_that_fails_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="ValueError: broken"):
        run(tmp_path, "-c", "raise ValueError('broken')")


def test_the_folder_to_convert_has_good_and_bad_masks(tmp_path: Path) -> None:
    folder = market_folder(program.ROOT / "shards" / "walkers", tmp_path / "market")
    images = list((folder / "bounding_box_train").iterdir())
    masks = list((folder / "bounding_box_train_seg").iterdir())
    assert len(images) == len(masks) == 600
    assert {image.stem for image in images} == {mask.stem for mask in masks}
