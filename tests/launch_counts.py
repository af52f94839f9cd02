"""Launches of one loss call on a GPU, forward and backward, counted without one.

    python tests/launch_counts.py [--rows 1024] [--columns 256] [--dtype float32] [--json]

Counted are the operators of torch that launch (views, allocations and metadata do not), Triton launches, and
the times the host waits for the GPU. Nothing is compiled and nothing runs: tensors only say they are on a GPU
(pretend_device.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when the first kernel is decorated
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "tests")]

import torch  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import maskreid_kernels as mk  # noqa: E402
import pretend_device  # noqa: E402
from kernel_cases import batch  # noqa: E402

LOSSES = {
    "batch_hard": mk.batch_hard_loss,
    "ranking": mk.ranking_loss,
    "n_pair": mk.n_pair_loss,
    "all_pairs": mk.all_pairs_loss,
    "circle": mk.circle_loss,
    "supervised_contrastive": mk.supervised_contrastive_loss,
}


def count(loss: Any, rows: int, columns: int, dtype: torch.dtype, backend: str) -> dict[str, Any]:
    """{"operators", "triton", "waits": numbers of a forward and backward, "of": operators by name}."""
    programs: Counter[str] = Counter()

    def launch(self: JITFunction, *_: Any, **__: Any) -> None:
        programs[self.fn.__name__] += 1

    x, y = batch(rows, columns)
    JITFunction.run = launch
    with pretend_device.PretendGpu():
        x, y = x.to(dtype).to("cuda").requires_grad_(), y.to("cuda")
        pretend_device.OPERATORS.clear()
        pretend_device.WAITS.clear()
        loss(x, y, backend=backend).backward()
        of = dict(pretend_device.OPERATORS.most_common())
        waits = sum(pretend_device.WAITS.values())
    return {"operators": sum(of.values()), "triton": sum(programs.values()), "waits": waits, "of": of}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pretend_device.pretend()
    dtype = getattr(torch, options.dtype)
    found = {
        name: {way: count(loss, options.rows, options.columns, dtype, way) for way in ("triton", "dense")}
        for name, loss in LOSSES.items()
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"N = {options.rows}, D = {options.columns}, {options.dtype}, forward and backward\n")
    print(
        "| loss | operators | Triton | host waits | dense: operators | host waits "
        "|\n|---|---|---|---|---|---|"
    )
    for name, by in found.items():
        ours, dense = by["triton"], by["dense"]
        print(f"| {name} | {ours['operators']} | {ours['triton']} | {ours['waits']} |"
              f" {dense['operators']} | {dense['waits']} |")  # fmt: skip


if __name__ == "__main__":
    main()
