"""`maskreid score`: what `evaluate` says, of embeddings on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import write_run
from market import write_market
from maskreid_dist.evaluation.evaluate import Ranked
from maskreid_dist.evaluation.extras import Extras, extra_figures
from maskreid_dist.evaluation.labels import Labels
from maskreid_dist.gallery import Gallery
from maskreid_dist.retrieval import ReRanking, evaluate_retrieval
from maskreid_shards import convert_market1501
from program import run
from test_retrieval import slow
from test_retrieval_reranking import dense, people

EXTRAS = (
    "--intervals",
    "--single-shot",
    "3",
    "--single-shot-seed",
    "5",
    "--verification",
    "--ap",
    "trapezoid",
)
CAMERAS = ("--multiple-query", "--camera-pairs")
AGAIN = ("--rerank", "--rerank-k1", "4", "--expand-queries", "2", "--expand-alpha", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, shards, and their queries and gallery embedded by it."""
    folder = tmp_path_factory.mktemp("data")
    convert_market1501(write_market(folder / "market", identities=6, images=3), folder / "shards")
    write_run(folder / "run", "model.with_mirror=false")  # which its name in a table would say
    for split in ("query", "gallery", "train"):
        status, said = run("embed", folder / "run", folder / "shards", folder / split, "--split", split)
        assert status == 0, said
    return folder


def figures(*words: object) -> dict[str, Any]:
    status, said = run(*words, "--json")
    assert status == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.parametrize(
    "flags", [(*EXTRAS, *CAMERAS, *AGAIN), (*EXTRAS, *AGAIN, "--cameras", "none")], ids=["labels", "none"]
)
def test_figures_are_those_of_evaluate(data: Path, flags: tuple[str, ...], tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    found = figures("score", data / "query", data / "gallery", *flags, "--output", kept)
    assert found == figures("evaluate", data / "run", data / "shards", *flags) == json.loads(kept.read_text())
    assert found["single_shot"]["seed"] == 5 and "expanded_reranked" in found
    assert found["roc"]["true_match_rate"][-1] == found["roc"]["false_match_rate"][-1] == 100
    said, expected = (
        run(*words, *flags)[1]
        for words in (
            ("score", data / "query", data / "gallery"),
            ("evaluate", data / "run", data / "shards"),
        )
    )
    assert said == expected and "queries + 2 nearest, alpha 1" in said


@pytest.mark.parametrize("cameras", ["labels", "none"])
def test_a_gallery_against_itself(data: Path, cameras: str, tmp_path: Path) -> None:
    gallery, flags = data / "train", (*EXTRAS, "--cameras", cameras)
    found = figures("score", gallery, gallery, *flags)
    expected = figures("evaluate", data / "run", data / "shards", "--split", "train", *flags)
    named = "each_against_the_others_of"
    assert found.pop(named) == str(gallery) and expected.pop(named) == "train"
    assert found == expected
    copied = shutil.copytree(gallery, tmp_path / "copied")
    assert figures("score", gallery, copied, *flags) == {**found, named: str(copied)}
    with Gallery.open(copied, writing=True) as changed:
        changed.forget(keys=changed.keys[:1])
    assert figures("score", gallery, copied, *flags).get(named) is None
    alone = figures("score", copied, copied, *flags)  # without the image that was taken out
    assert alone["valid_queries"] + alone["skipped_queries"] == len(Gallery.open(copied)) - 1
    assert "was a query among the others" in run("score", gallery, gallery)[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rerank",), "a gallery apart from the queries: not "),
        (("--expand-queries", "2"), "train twice"),
        (("--cameras", "none", "--multiple-query"), "need camera ids: leave out --cameras none"),
        (("--cameras", "none", "--camera-pairs"), "need camera ids"),
        (("--expand-alpha", "-1"), "alpha not negative"),
        (("--expand-alpha", "nan"), "alpha not negative"),
        (("--output", __file__ + "/figures.json"), "test_score.py"),
    ],
)
def test_what_is_refused(data: Path, flags: tuple[str, ...], words: str) -> None:
    status, said = run("score", data / "train", data / "train", *flags)
    assert status == 2 and said.count("\n") == 1 and words in said, said


def test_why_no_query_is_valid(data: Path, tmp_path: Path) -> None:
    with Gallery.open(data / "gallery") as whole:
        kinds = {"one camera": [3] * len(whole), "own camera": whole.pids.tolist()}
        for name, camids in kinds.items():
            with Gallery.create(tmp_path / name, whole.dimensions, whole.model) as made:
                made.append(whole.features, whole.keys, whole.pids, camids)
        with Gallery.create(tmp_path / "once", whole.dimensions, whole.model) as made:
            made.append(whole.features[:2], whole.keys[:2], [1, 2], [1, 2])
        count = len(whole)
    for name, flags, words in (
        (
            "one camera",
            (),
            f"all {count} queries and all {count} gallery images come from camera 3; for images ",
        ),
        ("own camera", (), "each of the"),
        ("once", ("--cameras", "none"), "the gallery holds no other image of any query's person"),
    ):
        status, said = run("score", tmp_path / name, tmp_path / name, *flags)
        assert status == 2 and said.count("\n") == 1 and words in said, said


def test_averaged_queries_re_ranked_are_those_of_the_definition() -> None:
    """A loop over persons and cameras, then the re-ranking of N x N distances."""
    q, qp, qc, g, gp, gc = people(40, 120, 3)
    ranked = Ranked("x", q, g, evaluate_retrieval(q, qp, qc, g, gp, gc))
    options = ReRanking(5, 3, 0.3)
    asked = Extras(multiple_query=True)
    found = extra_figures(ranked, Labels((qp, qc), (gp, gc)), asked, "hits", options)["multiple_query"]
    unit = q / np.linalg.norm(q, axis=1, keepdims=True)
    named = sorted(set(zip(qp.tolist(), qc.tolist(), strict=True)))
    pooled = np.stack([unit[(qp == pid) & (qc == camera)].mean(axis=0) for pid, camera in named])
    pids, camids = np.array(named).T
    cmc, hits, *_ = slow(dense(pooled, g, options, "cosine"), pids, camids, gp, gc)
    assert found["queries"] == len(named) < len(q)
    assert found["reranked"]["mAP"] == pytest.approx(100 * hits, abs=0.006)
    assert found["reranked"]["rank1"] == pytest.approx(100 * cmc[0], abs=0.006)
