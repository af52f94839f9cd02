"""Which files of the project a batch passes from shard to gradient, in the order in which they are first
entered.

python tests/way_of_a_batch.py                          # of this working tree
python tests/way_of_a_batch.py --checkout ../before     # of another commit, checked out there

Two small steps of training on one process run through the program `maskreid`, and the second is watched, from
the moment that the loop asks torch's DataLoader for a batch to the return of DeepSpeed's backward. Only names
of torch and DeepSpeed are used, so that commits before and after a move can be compared.
"""

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "name": "way",
    "batch.identities": 4,
    "batch.images": 2,
    "data.workers": 0,
    "model.width": 0.25,
    "loss.identity_weight": 0.0,  # one loss, the paper's
    "loss.label_smoothing": 0.0,
    "optimizer.steps": 2,
    "optimizer.warmup_steps": 0,
    "run.checkpoint_every": 2,
}


class Watch:
    """Notes the project's own files below `root` in which a function is entered while it is on."""

    def __init__(self, root: Path) -> None:
        self.root = f"{root}{os.sep}"
        self.files: dict[str, None] = {}

    def start(self) -> None:
        sys.setprofile(self._entered)

    def stop(self) -> None:
        sys.setprofile(None)

    def _entered(self, frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and self._is_own(name) and frame.f_code.co_name != "<module>":
            self.files.setdefault(name.removeprefix(self.root))

    def _is_own(self, name: str) -> bool:
        """An environment may lie inside the checkout (.venv): what is installed there is none of the
        project's."""
        return name.startswith(self.root) and "site-packages" not in name and name != __file__


def wrapped(function: Callable[..., Any], before: Callable[[], None], after: Callable[[], None]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        before()
        try:
            return function(*arguments, **options)
        finally:
            after()

    return call


def watch_second_step(watch: Watch) -> None:
    """Switch the watch on at the second batch that is asked for, and off behind its backward."""
    import deepspeed
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            watch.start()

    asking = wrapped(_BaseDataLoaderIter.__next__, count, lambda: None)
    _BaseDataLoaderIter.__next__ = asking  # type: ignore[method-assign]
    engine = deepspeed.DeepSpeedEngine
    engine.backward = wrapped(engine.backward, lambda: None, watch.stop)


def show(checkout: Path) -> None:
    """Train in this process, and print the way."""
    watch = Watch(checkout)
    watch_second_step(watch)
    with tempfile.TemporaryDirectory() as runs:
        sys.argv = ["maskreid", "train", "launch/recipes/walkers_demo.toml", "--runs", runs]
        for key, value in SETTINGS.items():
            sys.argv += ["--set", f"{key}={value}"]
        try:
            runpy.run_module("maskreid_dist", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    print_way(list(watch.files))


def print_way(files: list[str]) -> None:
    """The files in the order in which they were entered, a heading where the package changes, and how many
    they are."""
    package = ""
    for number, name in enumerate(files, 1):
        if package_of(name) != package:
            package = package_of(name)
            print(package)
        print(f"{number:5} {name}")
    shares = [f"{count} of {package}" for package, count in Counter(map(package_of, files)).items()]
    print(f"{len(files)} files: {', '.join(shares)}")


def package_of(name: str) -> str:
    return next(part for part in Path(name).parts if part.startswith("maskreid_"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Print the files that a batch passes from shard to gradient."
    )
    parser.add_argument("--checkout", type=Path, default=ROOT, help="Another commit's folder.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    if options.here:
        show(checkout)
        return 0
    if not (checkout / "maskreid_dist").is_dir():
        print(f"error: {checkout}: no maskreid_dist there; name a checkout of this project", file=sys.stderr)
        return 2
    # A process of its own, that imports the checkout's packages.
    paths = os.pathsep.join(str(checkout / folder) for folder in (".", "kernels", "shards"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--here", "--checkout", str(checkout)]
    return subprocess.run(command, cwd=checkout, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
