"""`maskreid bench convert` on a small folder, and on the shards that the repository carries."""

import csv
import json
from pathlib import Path

from typer.testing import CliRunner

from market import write_market
from maskreid_dist.cli.app import app
from maskreid_shards import convert_market1501
from maskreid_shards.bench.convert import loose_files
from program import run

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"


def test_figures_and_csv(tmp_path: Path) -> None:
    src, table = write_market(tmp_path / "m"), tmp_path / "convert.csv"
    arguments = [
        "bench",
        "convert",
        "--source",
        src,
        "--workers",
        1,
        "--workers",
        2,
        "--runs",
        1,
        "--output",
        table,
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    promised = "PASS" in result.output
    assert result.exit_code == (0 if promised else 1) and promised != ("MISS" in result.output), result.output
    rows = list(csv.DictReader(table.open()))
    assert [row["workers"] for row in rows] == ["1", "2"] and {row["pairs"] for row in rows} == {"39"}
    for row in rows:
        assert abs(float(row["core_pairs_s"]) * float(row["cpu_s"]) - 39) < 1e-6
        assert abs(float(row["wall_pairs_s"]) * float(row["wall_s"]) - 39) < 1e-6


def test_loose_files_are_those_the_shards_were_made_of(tmp_path: Path) -> None:
    src = write_market(tmp_path / "market")
    report = convert_market1501(src, tmp_path / "shards", dataset="m")
    with loose_files(None, tmp_path / "shards") as folder:
        for path in src.rglob("*.*"):
            assert (folder / path.relative_to(src)).read_bytes() == path.read_bytes()
        again = convert_market1501(folder, tmp_path / "again", dataset="m")
    assert not folder.exists()
    assert again.manifest.fingerprint == report.manifest.fingerprint


def test_the_carried_shards_are_what_this_version_writes(tmp_path: Path) -> None:
    """Except the report on masks: 70 empty ones were replaced, and the replacements are good."""
    with loose_files(None, WALKERS) as folder:
        convert_market1501(
            folder, tmp_path / "out", dataset="walkers", on_bad_mask="full", shard_bytes=4_000_000, workers=2
        )
    carried, written = (
        {str(path.relative_to(top)): path for path in top.rglob("*") if path.is_file()}
        for top in (WALKERS, tmp_path / "out")
    )
    assert (
        carried.keys() - written.keys()
        == {"README.md", "identities.csv", "LICENSE", "LICENSE.masks", "pyproject.toml"}
        and written.keys() <= carried.keys()
    )
    for name in written.keys() - {"manifest.json"}:
        assert carried[name].read_bytes() == written[name].read_bytes(), name
    before, now = (json.loads(found["manifest.json"].read_text()) for found in (carried, written))
    assert before.pop("fingerprint") != now.pop("fingerprint")
    masks_before, masks_now = before.pop("masks"), now.pop("masks")
    assert before == now
    assert (
        masks_before["counts"] == {**masks_now["counts"], "empty": 70} and len(masks_before["examples"]) == 5
    )


def test_the_scale_of_a_made_up_set(tmp_path: Path) -> None:
    status, output = run(
        "bench", "convert", "--pairs", 1000, "--folder", tmp_path, "--output", tmp_path / "scale.csv"
    )
    assert status == 0 and "peak memory of a process" in output, output
    assert len([line for line in output.splitlines() if line.rstrip().endswith("PASS")]) == 4, output
    rows = (tmp_path / "scale.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["convert", "verify --quick", "open", '"plan']
    assert [path.name for path in tmp_path.iterdir()] == ["scale.csv"]


def test_a_made_up_set_that_does_not_fit_the_disk(tmp_path: Path) -> None:
    status, output = run("bench", "convert", "--pairs", 10**13, "--folder", tmp_path)
    assert status == 2 and output.count("\n") == 1 and "are free" in output, output
    assert not list(tmp_path.iterdir())
