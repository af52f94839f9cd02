"""`python -m golden BASE`: measure the commit BASE and the working tree on this machine, and compare the
bits.

Exit status 0: nothing differs; 1: something does, named in the table; 2: a measurement could not be made.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from golden.comparison import Results, compare, table
from golden.measurements import MEASUREMENTS, MeasurementError, market_folder

DESCRIPTION = "Compare the bits that a commit and the working tree compute: training, losses, a conversion."
ROOT = Path(__file__).resolve().parent.parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make golden", description=DESCRIPTION)
    parser.add_argument("base", metavar="BASE", help="the commit to compare the working tree with")
    parser.add_argument(
        "--only", choices=MEASUREMENTS, action="append", help="measure this alone; repeatable"
    )
    options = parser.parse_args(arguments)
    base = options.base
    try:
        with tempfile.TemporaryDirectory() as folder, checked_out(base, Path(folder)) as checkout:
            before, after = measure_both(checkout, ROOT, Path(folder), options.only or list(MEASUREMENTS))
    except MeasurementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    differences = compare(before, after)
    print("\n".join(table(before, after, differences, base)))
    return 1 if differences else 0


def measure_both(base: Path, head: Path, folder: Path, names: Sequence[str]) -> tuple[Results, Results]:
    """The results of two checkouts, measured side by side, each on one core."""
    market = market_folder(head / "shards" / "walkers", folder / "market")
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(measure, base, folder / "base", market, names)
        after = pool.submit(measure, head, folder / "head", market, names)
        return before.result(), after.result()


def measure(checkout: Path, work: Path, market: Path, names: Sequence[str]) -> Results:
    """The named results of a checkout; `work` is where it writes."""
    work.mkdir(exist_ok=True)
    results = {}
    for name in names:
        results[name] = MEASUREMENTS[name](checkout, work, market)
        print(f"{work.name}: {name}: {len(results[name])} values", file=sys.stderr, flush=True)
    return results


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A git worktree of the commit, removed afterwards."""
    found = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode:
        raise MeasurementError(f"{commit}: no such commit here; name one, such as HEAD~1")
    worktree = folder / "worktree"
    added = git("worktree", "add", "--detach", str(worktree), found.stdout.strip())
    if added.returncode:
        raise MeasurementError(f"{commit}: git worktree add: {added.stderr.strip()}")
    try:
        yield worktree
    finally:
        git("worktree", "remove", "--force", str(worktree))


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
