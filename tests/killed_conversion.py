"""SRC OUT WORKERS STEP: a conversion whose first process is killed (SIGKILL) at a known moment. Run as a
program.

Steps are a sample's write into its shard, fsync and rename. With one worker the process ends before its own
STEP-th. With more the first worker to come to its STEP-th ends the process that started it, and goes on. A
conversion that comes to no such step prints how many its process made.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskreid_shards import convert_market1501, writing

SHARD_BYTES = 12_000
steps = 0


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        global steps
        steps += 1
        if steps == int(sys.argv[4]):
            parent = multiprocessing.parent_process()
            os.kill(parent.pid if parent and parent.pid else os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return call


if __name__ in ("__main__", "__mp_main__"):  # workers import the program under the second name
    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    writing.TarWriter.flush = counted(writing.TarWriter.flush)  # type: ignore[method-assign]

if __name__ == "__main__":
    convert_market1501(
        Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=SHARD_BYTES, workers=int(sys.argv[3])
    )
    print(steps)
