"""`python -m cluster`: hosts on this machine, and a training over them by every launcher (`make cluster`).

Exit status 0: all as it must be; 1: something is not, named in the table; 2: the hosts cannot be made here.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.cases import CASES, Scene, Skipped, Unmet, nothing_left
from cluster.hosts import ClusterError, cluster, enter, missing_programs

DESCRIPTION = "A training over several hosts, which are namespaces of this machine, by every launcher."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make cluster", description=DESCRIPTION)
    parser.add_argument("--hosts", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--only", choices=CASES, action="append", help="try this alone; repeatable")
    parser.add_argument(
        "--if-possible", action="store_true", help="where hosts cannot be made, say so and pass"
    )
    parser.add_argument("--below", type=Path, help=argparse.SUPPRESS)  # the folder, once in the namespaces
    options = parser.parse_args(arguments)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if options.below:
        return try_all(options.below, options.hosts, options.only or list(CASES))
    if problem := missing_programs():
        if options.if_possible:
            print(f"cluster: skipped, {problem}")
            return 0
        print(f"error: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="cluster_") as folder:
        try:
            status = enter("cluster", [*given, "--below", folder])
            if status == 2 and options.if_possible:
                print("cluster: skipped, hosts cannot be made here")
                return 0
            return status
        except KeyboardInterrupt:
            return 128 + signal.SIGINT


def try_all(folder: Path, size: int, names: Sequence[str]) -> int:
    """Every named case, a line each."""
    failed = 0
    try:
        with cluster(folder, size) as hosts:
            scene = Scene(hosts, folder)
            for name in names:
                start = time.monotonic()
                try:
                    seen = CASES[name](scene)
                    nothing_left(scene)
                except Skipped as reason:
                    seen = f"skipped: {reason}"
                except (Unmet, ClusterError) as problem:
                    failed += 1
                    seen = f"FAILED: {problem}"
                    for host in hosts:  # of what may still run there
                        host.stop()
                        host.boot(hosts)
                print(f"{name:12} {time.monotonic() - start:5.0f} s  {seen}", flush=True)
    except ClusterError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"{len(names) - failed} of {len(names)} as they must be, {size} hosts")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
