"""The tests that signal, kill, wait for or measure another process, again and again: `make steady`.

None of them may depend on how fast the machine is. So each is run many times on an idle machine, beside two
busy processes for each core, and with all its processes on one core.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
TESTS = (
    "test_cli_convert.py::test_ctrl_c_is_one_line_and_resumes",
    "test_cli_convert.py::test_ctrl_c_while_workers_start_is_left_to_the_first_process",
    "test_shards_resume.py",
    "test_demo.py",
    "test_shards_remote.py",
    "test_stream.py::test_a_server_that_stops_answering_is_one_line",
    "test_stream.py::test_a_worker_stacks_into_shared_memory",
    "test_stream.py::test_a_worker_holds_no_more_after_many_batches",
    "test_bench_loader.py::test_memory_is_that_of_the_worker",
    "test_bench_loader.py::test_an_emptied_cache_reads_from_the_disk",
    "test_shards_plan.py::test_a_million_identities",
    "test_plan_loader.py::test_what_a_plan_costs",
)
CONDITIONS = ("idle", "loaded", "pinned")
BUSY = "while True: pass"


@contextlib.contextmanager
def machine(condition: str) -> Iterator[None]:
    """This process and its children under `condition`, one of CONDITIONS."""
    cores = os.sched_getaffinity(0)
    busy = []
    try:
        if condition == "pinned":
            os.sched_setaffinity(0, {min(cores)})
        if condition == "loaded":
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * len(cores))]
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for process in busy:
            process.kill()
            process.wait()


def run(tests: list[str], times: int, condition: str) -> int:
    """How many of `times` runs failed; one line a run, and what pytest says of one that fails."""
    failed = 0
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(HERE / t) for t in tests),
    ]
    with machine(condition):
        for number in range(1, times + 1):
            start = time.monotonic()
            done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
            said = done.stdout + done.stderr
            failed += done.returncode != 0
            if done.returncode:
                print(said)
            load = os.getloadavg()[0]
            took = time.monotonic() - start
            line = done.stdout.strip().splitlines()[-1]
            print(f"{condition} {number}/{times}: {line} ({took:.0f} s, load {load:.1f})", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tests", nargs="*", default=list(TESTS), help="below tests/; default: those listed here"
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--condition", choices=CONDITIONS, action="append", help="default: all three")
    chosen = parser.parse_args()
    conditions = chosen.condition or CONDITIONS
    failures = {name: run(chosen.tests, chosen.times, name) for name in conditions}
    for name, failed in failures.items():
        print(f"{name}: {chosen.times - failed} of {chosen.times} runs passed")
    sys.exit(1 if any(failures.values()) else 0)


if __name__ == "__main__":
    main()
