"""`python -m maskreid_kernels.bench gpu` from a bare checkout, nothing installed: python kernels/bench/gpu.py
--help."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    paths = [str(ROOT / folder) for folder in (".", "kernels", "shards")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])

    from maskreid_kernels.bench.command_line import main

    sys.exit(main(["gpu", *sys.argv[1:]]))
