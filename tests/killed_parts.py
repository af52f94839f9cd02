"""SRC OUT WORKERS STEP WHAT: a part I/N of a conversion, or `finish`, whose process is killed at a known
moment, as `killed_conversion.py` has it. Run as a program."""

import os
import sys
from pathlib import Path

import killed_conversion
from killed_conversion import SHARD_BYTES, counted
from maskreid_shards import convert_part, finish_parts, scan_market1501, writing

if __name__ in ("__main__", "__mp_main__"):  # workers import the program under the second name
    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    writing.TarWriter.flush = counted(writing.TarWriter.flush)  # type: ignore[method-assign]

if __name__ == "__main__":
    src, out, workers, _, what = sys.argv[1:]
    layout = scan_market1501(Path(src))
    if what == "finish":
        finish_parts(layout, Path(out), dataset="market", shard_bytes=SHARD_BYTES)
    else:
        number, _, count = what.partition("/")
        part = (int(number), int(count))
        convert_part(layout, Path(out), part, workers=int(workers), dataset="market", shard_bytes=SHARD_BYTES)
    print(killed_conversion.steps)
