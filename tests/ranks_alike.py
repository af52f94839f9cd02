"""What `maskreid evaluate`, `embed` and `score` cost with 1, 2 and more ranks of torchrun beside one process,
and whether they make the same. `make ranks-alike`, with a run too: `make ranks-alike RUN=runs/demo`.

Seconds are of the processor, of the rank that took most, from when all is imported to its end, with its
workers; one thread each. So they say what ranks share on a machine that others use. Embeddings to be scored
are made up: loose persons, as `maskreid bench reranking` has them.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskreid_dist.gallery import Gallery
from maskreid_dist.gallery.store import Model
from maskreid_dist.training.environment import free_port
from nodes import PYTHONPATH, ROOT

DIMENSIONS = 256
NOISE = 2.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="also evaluate and embed with this")
    parser.add_argument("--shards", type=Path, default=ROOT / "shards" / "walkers")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=200_000, help="images that are scored")
    parser.add_argument("--reranked", type=int, default=15_913, help="images that are re-ranked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works = scored(folder, options.queries, options.gallery, options.reranked)
        if options.run:
            place, shards = str(options.run), str(options.shards)
            works["evaluate"] = ["evaluate", place, shards, "--rerank", "--output", "OUT"]
            works["embed"] = ["embed", place, shards, "OUT"]
        return compared(works, options.ranks)


def scored(folder: Path, queries: int, gallery: int, reranked: int) -> dict[str, list[str]]:
    """Commands by name, and the embeddings that they read."""
    rng = np.random.default_rng(0)
    for name, images in (("queries", queries), ("gallery", gallery), ("reranked", reranked)):
        with Gallery.create(folder / name, DIMENSIONS, Model("made-up", 0, "0" * 64)) as made:
            for start in range(0, images, 10_000):
                pids = rng.integers(1, 751, min(10_000, images - start))
                centres = np.random.default_rng(1).standard_normal((751, DIMENSIONS), dtype=np.float32)
                rows = centres[pids] + NOISE * rng.standard_normal((len(pids), DIMENSIONS), dtype=np.float32)
                keys = [str(start + number) for number in range(len(pids))]
                made.append(rows.astype(np.float32), keys, pids, rng.integers(0, 6, len(pids)))
    asked = str(folder / "queries")
    return {
        f"score {queries} x {gallery}": ["score", asked, str(folder / "gallery"), "--json"],
        f"score --rerank {queries} x {reranked}": [
            "score",
            asked,
            str(folder / "reranked"),
            "--rerank",
            "--json",
        ],
    }


def compared(works: dict[str, list[str]], sizes: Sequence[int]) -> int:
    """1 if ranks make something else than one process."""
    print(f"{len(os.sched_getaffinity(0))} cores; seconds of processor time of the rank that took most")
    for name, work in works.items():
        alone, expected = measure(0, work)
        print(f"{name}: one process {alone:.1f}", flush=True)
        for size in sizes:
            seconds, found = measure(size, work)
            if found != expected:
                print(f"  {size} ranks: ANOTHER'S FIGURES OR FILES")
                return 1
            print(
                f"  {size} ranks: {seconds:.1f}, {seconds / alone:.2f} x, the same figures and files",
                flush=True,
            )
    return 0


def measure(ranks: int, work: Sequence[str]) -> tuple[float, str]:
    """Seconds of the rank with most, and a digest of what was said and written. ranks: 0, no launcher."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(ranks),
        "--master_port",
        str(free_port()),
    ]
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        arguments = [str(out) if word == "OUT" else word for word in work]
        words = [sys.executable, *(launcher if ranks else []), __file__, "--as-rank", name, *arguments]
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
        said = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True).stdout
        digest.update(said.replace(name.encode(), b""))
        for path in sorted([out, *out.glob("*")]):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        return max(json.loads(path.read_text()) for path in Path(name).glob("*.seconds")), digest.hexdigest()


def as_rank(folder: Path, arguments: Sequence[str]) -> int:
    """One rank's work, and its seconds into `folder`."""
    import maskreid_dist.evaluation.refined
    import maskreid_dist.gallery.enrol
    import maskreid_dist.training.together  # noqa: F401 (what is imported now is no work)
    from maskreid_dist.cli.app import app

    before, status = sum(os.times()[:4]), 0
    try:
        app(list(arguments))
    except SystemExit as error:
        status = int(error.code or 0)
    rank = os.environ.get("RANK", "0")
    (folder / f"{rank}.seconds").write_text(json.dumps(sum(os.times()[:4]) - before))
    return status


if __name__ == "__main__":
    sys.exit(as_rank(Path(sys.argv[2]), sys.argv[3:]) if sys.argv[1:2] == ["--as-rank"] else main())
