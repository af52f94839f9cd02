"""What a rank finds on its machine before it works: the processors it may use, the network it sees."""

import os
import platform
import socket
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

THREADS = "OMP_NUM_THREADS"


def processors_here() -> int:
    """The processors that this process may run on (its affinity: cpusets, taskset, srun), as a mask."""
    return sum(1 << processor for processor in os.sched_getaffinity(0))


def processor_name() -> str:
    """As Linux names the first; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def network_here() -> str:
    """An identity of the network that this process sees: 127.0.0.1 is the same place where it is the same.

    The boot and the network namespace: machines and containers differ even where they have one name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def threads_of_rank(environment: Mapping[str, str], own: int, on_machine: Iterable[int]) -> int | None:
    """How many threads torch should use on a CPU; None to leave it to OMP_NUM_THREADS, which is set.

    A processor is shared equally by the ranks that may run on it. Ranks that a launcher binds have their own,
    and those that all may run anywhere divide the machine. own: this rank's processors, as a mask;
    on_machine: those of every rank of its machine, this one too.
    """
    if environment.get(THREADS):
        return None
    masks = list(on_machine)
    processors = [number for number in range(own.bit_length()) if own >> number & 1]
    share = sum(
        (Fraction(1, sum(mask >> number & 1 for mask in masks)) for number in processors), Fraction(0)
    )
    return max(1, int(share))
