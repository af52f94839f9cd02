"""`maskreid evaluate` and `maskreid embed` over ranks: what one process makes, bit for bit; one line for what
one rank finds wrong; and a gallery that another number of ranks finishes."""

import shutil
import socket
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import write_run
from forked_ranks import BATCH_ROWS, Launch, Launcher, Left
from market import write_market, write_pair
from maskreid_dist.cli.ranks import ranking_on
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation import evaluate, ranks
from maskreid_dist.evaluation.labels import Labels
from maskreid_dist.gallery import Gallery
from maskreid_shards import convert_market1501, open_shards
from program import run

HOST = socket.gethostname()
RERANK = ("--rerank", "--rerank-k1", "4", "--rerank-k2", "2")
OTHERS = ("--mask-damage", "swap=1", "--mirror")
FIGURES = (*RERANK, "--expand-queries", "3", "--intervals", "--camera-pairs", *OTHERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards: 7 queries and 27 gallery images, 2 and 7 batches; run: an untrained network."""
    folder = tmp_path_factory.mktemp("data")
    market = write_market(folder / "market", identities=2, images=2)
    for pid in range(202, 207):
        write_pair(market, "query", f"{pid:04d}_c1s1_000001_01", pid)
        for number in range(3):
            write_pair(market, "gallery", f"{pid:04d}_c2s1_{number:06d}_01", pid + 10 * number)
    convert_market1501(market, folder / "shards", shard_bytes=30_000)
    write_run(folder / "run")
    return folder


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("logs")) as launcher:
        yield launcher


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process, as the launches have them."""
    monkeypatch.setattr(ranks.Ranks, "__init__", partialmethod(ranks.Ranks.__init__, batch_rows=BATCH_ROWS))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_queries_say_where_galleries_are_ranked() -> None:
    """The host unless it is asked for, also where images are embedded on a GPU; meta stands for one here."""
    ids = np.zeros(2, np.int64)
    labels = Labels((ids, ids), (ids, ids))
    rows, gpu = np.ones((2, 4), np.float32), torch.device("meta")
    own = ranks.Ranks(device=gpu)
    assert evaluate.own_sides(rows, rows, labels, own)[0] is rows
    asked = ranking_on(own, "gpu")
    queries = evaluate.own_sides(rows, rows, labels, asked)[0]
    assert isinstance(queries, torch.Tensor) and queries.device == gpu
    assert ranking_on(own, "cpu") is own
    with pytest.raises(UserError, match="--distances-on gpu: torch finds no GPU here; leave it out"):
        ranking_on(ranks.Ranks(device=torch.device("cpu")), "gpu")


def test_figures_and_features_are_those_of_one_process(
    data: Path, tmp_path: Path, launcher: Launcher, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["evaluate", str(data / "run"), str(data / "shards"), *FIGURES]
    asked += ["--distractors", str(data / "shards"), "--output"]
    kept: list[evaluate.Ranked] = []
    rank_shares = evaluate.rank_shares

    def keeping(*arguments: Any) -> evaluate.Ranked:
        kept.append(rank_shares(*arguments))
        return kept[-1]

    monkeypatch.setattr(evaluate, "rank_shares", keeping)
    status, said = run(*asked, tmp_path / "one.json")
    assert status == 0 and "gallery of 66 images" in said
    launches = []
    for size in (1, 2, 3):
        (tmp_path / str(size)).mkdir()
        launches.append(
            Launch(size, [*asked, str(tmp_path / f"{size}.json")], keep=str(tmp_path / str(size)))
        )
    for size, left in zip((1, 2, 3), launcher.run(*launches), strict=True):
        assert left.statuses == [0] * size, left.output
        written = tmp_path / f"{size}.json"
        assert left.output.replace(str(written), "") == said.replace(str(tmp_path / "one.json"), "")
        assert written.read_bytes() == (tmp_path / "one.json").read_bytes()
        for rank in range(size):
            found = np.load(tmp_path / str(size) / f"{rank}.npz")
            assert np.array_equal(found["query"], kept[-1].query)
            assert np.array_equal(found["ap"], kept[-1].result.average_precision)
            assert np.array_equal(found["cmc"], kept[-1].result.cmc)
            assert rank or np.array_equal(found["gallery"], kept[-1].gallery)


def test_a_gallery_that_other_ranks_finish_has_the_bytes_of_one_process(
    data: Path, tmp_path: Path, launcher: Launcher, small_batches: None
) -> None:
    def embed(out: str) -> list[str]:
        return ["embed", str(data / "run"), str(data / "shards"), str(tmp_path / out)]

    assert run(*embed("one"))[0] == run(*embed("queries"), "--split", "query")[0] == 0
    expected = files(tmp_path / "one")
    assert set(expected) == {"manifest.json", "rows-1.f32", "journal-1.txt"}
    score = ["score", str(tmp_path / "queries"), str(tmp_path / "one"), *RERANK]
    three, killed, again, last, scored = launcher.run(
        Launch(3, embed("of3")),
        Launch(3, embed("killed"), kill=(1, 2)),
        Launch(2, embed("killed")),
        Launch(2, embed("alone"), kill=(1, 3)),
        Launch(3, score),
    )
    assert scored.statuses == [0, 0, 0] and scored.output == run(*score)[1] and "re-ranked" in scored.output
    for out, left in (("of3", three), ("killed", again)):
        assert set(left.statuses) == {0}, left.output
        assert files(tmp_path / out) == expected
        assert left.output.count("embeddings") == 1 and str(tmp_path / out) in left.output
    assert killed.statuses[1] == last.statuses[1] == -9
    held = int(again.output.split("embeddings, ")[1].split(" of them")[0])
    assert held >= BATCH_ROWS  # rank 1's first piece, and what the others had by then
    # This process alone goes on: with the pieces, those of rank 1 at the end among them, and its own.
    pieces = sorted(path.name for path in (tmp_path / "alone" / "pieces").glob("*.f32"))
    assert "000000012-4.f32" in pieces and "000000016-4.f32" in pieces and "000000020-4.f32" not in pieces
    damaged = tmp_path / "alone" / "pieces" / "000000012-4.f32"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    status, said = run(*embed("alone"))
    assert status == 0 and " of them from before" in said
    assert files(tmp_path / "alone") == expected


def test_what_one_rank_finds_wrong_is_one_line_of_all(data: Path, tmp_path: Path, launcher: Launcher) -> None:
    shards = tmp_path / "shards"
    for rank in (0, 1):
        shutil.copytree(data / "shards", f"{shards}{rank}")
    for spoilt in Path(f"{shards}1/gallery").glob("*.tar"):
        spoilt.write_bytes(spoilt.read_bytes().replace(b"\xff\xd9", b"\xff\xd8"))
    other = tmp_path / "other"
    shutil.copytree(data / "run", f"{other}0")
    write_run(Path(f"{other}1"), "name=run", seed=1)
    convert_market1501(write_market(tmp_path / "m", identities=2, images=2), tmp_path / "few1")
    shutil.copytree(data / "shards", tmp_path / "few0")
    shutil.copytree(data / "run", tmp_path / "missing0")
    good = str(data / "run"), str(data / "shards")
    first, second = f"rank 0 on {HOST}: {tmp_path}", f"rank 1 on {HOST}: {tmp_path}"
    cases = [
        (["evaluate", good[0], f"{shards}{{rank}}"], f"{second}/shards1/gallery/"),
        (["embed", good[0], f"{shards}{{rank}}", str(tmp_path / "a")], f"{second}/shards1/gallery/"),
        (["evaluate", good[0], f"{tmp_path}/few{{rank}}"], "the fingerprint of the shards is not the same"),
        (["evaluate", f"{other}{{rank}}", good[1]], "the checkpoint is not the same on all ranks: "),
        (["embed", f"{other}{{rank}}", good[1], str(tmp_path / "b")], "the checkpoint is not the same"),
        (["evaluate", f"{tmp_path}/missing{{rank}}", good[1]], f"{second}/missing1: no usable checkpoint"),
        (["evaluate", *good, "--sizes", "5"], "--sizes are those of galleries with --distractors"),
        (["embed", *good, f"{tmp_path}/c{{rank}}"], f"{second}/c1: is not the folder that rank 0 writes"),
        (["embed", *good, str(tmp_path / "held")], f"{first}/held: another process is writing here"),
    ]
    run("embed", *good, tmp_path / "held")
    for rank in (0, 1):
        shutil.copytree(tmp_path / "held", tmp_path / f"held{rank}")
    with Gallery.open(tmp_path / "held1", writing=True) as gallery:
        gallery.forget(keys=gallery.keys[:1])
    differs = ["score", str(tmp_path / "held"), f"{tmp_path}/held{{rank}}"]
    cases.append((differs, "the gallery is not the same on all ranks: "))
    with Gallery.open(tmp_path / "held", writing=True):
        ended = launcher.run(*(Launch(2, arguments) for arguments, _ in cases))
    for (arguments, start), left in zip(cases, ended, strict=True):
        check_one_line(left, start, arguments)


def check_one_line(left: Left, start: str, arguments: list[str]) -> None:
    assert left.statuses == [2, 2], (arguments, left.output)
    assert [line.startswith(start) for line in left.errors] == [True], (arguments, left.output)
    assert "Traceback" not in left.output


def test_shares_are_whole_batches_of_all_images() -> None:
    for size in (1, 2, 3, 5):
        for images in (0, 1, 7, 8, 27, 100):
            slices = [ranks.Ranks(rank, size, batch_rows=8).rows(images) for rank in range(size)]
            rows = [number for part in slices for number in range(images)[part]]
            assert rows == list(range(images))
            assert all(part.start % 8 == 0 or part.start == images for part in slices)


def test_features_that_are_not_finite_are_one_line(data: Path) -> None:
    shards = open_shards(data / "shards")
    query, gallery = (np.ones((len(shards.split(name)), 4), np.float32) for name in ("query", "gallery"))
    gallery[3, 2] = np.nan
    with pytest.raises(UserError, match=r"^mine, step 3: .*gallery") as caught:
        evaluate.rank_shares("mine, step 3", query, gallery, shards, ranks.Ranks(), "hits", "labels")
    assert "\n" not in str(caught.value)
