"""A measurement in a process of its own, which has what it measures and nothing else in memory."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_own_process(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """What a function gives in a fresh process. Raises what it raises, and BrokenProcessPool where the
    process was killed (out of memory, most likely)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def peak_mb() -> float:
    """The most memory that this process had, in MB (1e6 bytes); `ru_maxrss` would count that of the one that
    started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
