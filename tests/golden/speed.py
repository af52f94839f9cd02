"""`python -m golden.speed BASE`: time steps of the losses at a commit and in the working tree, turn about, on
this CPU.

Times are as multiples of the bare product x x^T, the least of all that were measured; `auto` chooses the
backend.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from golden.__main__ import ROOT, checked_out
from golden.measurements import MeasurementError

LOSSES = ("batch_hard", "ranking_1", "ranking_50", "n_pair", "supervised_contrastive", "circle")
SHAPES = ("64x256", "512x256", "1024x256", "8192x256", "8192x2048")
STEP = Path(__file__).with_name("loss_step.py")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make speed", description=__doc__)
    parser.add_argument("base", metavar="BASE", help="the commit to compare the working tree with")
    parser.add_argument(
        "--losses", nargs="+", default=LOSSES, metavar="LOSS", help="ranking_P: P %% violators"
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROWSxCOLUMNS")
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time; more: wall time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement, at least three steps")
    parser.add_argument("--one-rank", action="store_true", help="with a process group of one rank")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder, checked_out(options.base, Path(folder)) as checkout:
            compare(checkout, options)
    except MeasurementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(checkout: Path, options: argparse.Namespace) -> None:
    unit = "CPU ms" if options.threads == 1 else f"ms on {options.threads} threads"
    print(f"least of {options.rounds} processes each, {unit}; x: multiples of the product")
    print(
        f"| loss | N x D | product | {options.base} | x | now | x | faster "
        "|\n|---|---|---|---|---|---|---|---|"
    )
    for shape in options.shapes:
        for loss in options.losses:
            before, after, product = least(checkout, loss, shape, options)
            cells = [f"{1e3 * product:.2f}"]
            for seconds in (before, after):
                cells += [f"{1e3 * seconds:.2f}", f"{seconds / product:.2f}"]
            row = [loss, shape.replace("x", " x "), *cells, f"{before / after:.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)


def least(checkout: Path, loss: str, shape: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of a step at the commit and now, and of the product."""
    steps: dict[Path, list[float]] = {checkout: [], ROOT: []}
    products: list[float] = []
    for number in range(options.rounds):
        for tree in (checkout, ROOT) if number % 2 == 0 else (ROOT, checkout):
            found = measure(tree, loss, shape, options)
            steps[tree].append(found["step"])
            products.append(found["product"])
    return min(steps[checkout]), min(steps[ROOT]), min(products)


def measure(tree: Path, loss: str, shape: str, options: argparse.Namespace) -> dict[str, float]:
    rows, columns = shape.split("x")
    command = [sys.executable, str(STEP), loss, rows, columns, str(options.threads), str(options.seconds)]
    environment = os.environ | {"PYTHONPATH": str(tree / "kernels"), "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        [*command, str(options.one_rank)], env=environment, capture_output=True, text=True, cwd=tree
    )
    if done.returncode:
        raise MeasurementError(f"{loss} {shape} in {tree}: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
