"""The worked example of CONTRIBUTING.md for converters: one file, one line, and the commands are there."""

import shutil
from pathlib import Path

from market import jpeg, write_pair
from worked_examples import ROOT, example, follow, run

PACKAGE = Path("shards/maskreid_shards")


def test_a_converter_is_one_file_and_one_line_of_the_table(tmp_path: Path) -> None:
    steps = example("A converter")
    new, table = steps
    assert not (ROOT / new).exists() and (ROOT / table).exists()
    lines = [line for line in steps[table].splitlines() if line]
    assert len(lines) == 2 and lines[0].startswith("from ")  # an import, and the line
    follow(steps, PACKAGE, tmp_path)
    for number in range(6):
        write_pair(tmp_path / "src", "query", f"{number // 2}_{number % 2 + 1}_{number:03d}", number)
    (tmp_path / "src" / "query").rename(tmp_path / "src" / "images")
    (tmp_path / "src" / "query_seg").rename(tmp_path / "src" / "images_seg")

    def maskreid(*arguments: object) -> tuple[int, str]:
        found = run(tmp_path, "shards", "-m", "maskreid_dist", *arguments)
        return found.returncode, found.stdout + found.stderr

    status, output = maskreid("convert", "flat", "src", "out", "--first-pid", 5, "--workers", 1)
    assert status == 0 and "train: 6 images, 3 identities" in output, output
    shutil.copytree(tmp_path / "src", tmp_path / "src2")
    for number, image in enumerate(sorted((tmp_path / "src2" / "images").iterdir())):
        image.write_bytes(jpeg(100 + number))
    status, output = maskreid("convert", "merge", "merged", "a=flat:src", "b=flat:src2", "--workers", 1)
    assert status == 0 and "train: 12 images, 6 identities" in output, output
    status, output = maskreid("convert", "flat", "src", "other", "--images", "none")
    assert (status, output) == (2, "maskreid: error: src: folder none is missing\n")
    for command in ("convert", "segment"):
        status, output = maskreid(command, "flat", "--help")
        assert status == 0 and "named <pid>_<camera>_<number>.jpg" in output and "--first-pid" in output
