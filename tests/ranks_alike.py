"""`maskreid evaluate` and `maskreid embed` of a run with 1, 2 and more ranks of torchrun: seconds, and
whether they make what one process does. `make ranks-alike RUN=runs/demo`."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from maskreid_dist.training.environment import free_port
from nodes import PYTHONPATH, ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--shards", type=Path, default=ROOT / "shards" / "walkers")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{options.run}, {options.shards}; {cores} cores; seconds of a whole command, its start included")
    print("ranks  evaluate  embed  figures and embeddings")
    first = ""
    for ranks in [0, *options.ranks]:
        seconds, found = measure(ranks, options.run, options.shards)
        first = first or found
        same = "as one process's" if found == first else "ANOTHER'S"
        print(
            f"{ranks or 'none':>5}  {seconds[0]:8.1f}  {seconds[1]:5.1f}  {same if ranks else ''}", flush=True
        )
        if found != first:
            return 1
    return 0


def measure(ranks: int, run: Path, shards: Path) -> tuple[list[float], str]:
    """Of both commands, and a digest of what they wrote. ranks: 0 for a process without a launcher."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port"]
    program = [sys.executable, *([*launcher, str(free_port())] if ranks else []), "-m", "maskreid_dist"]
    seconds, digest = [], hashlib.sha256()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures, gallery = folder / "figures.json", folder / "gallery"
        for command in (
            ["evaluate", run, shards, "--rerank", "--output", figures],
            ["embed", run, shards, gallery],
        ):
            started = time.monotonic()
            environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
            words = [*program, *map(str, command)]
            subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.monotonic() - started)
        for path in [figures, *sorted(gallery.iterdir())]:
            digest.update(path.name.encode() + path.read_bytes())
    return seconds, digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
