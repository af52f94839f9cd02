"""Python function calls of one loss on a small batch, forward and backward: what the host does beside torch's
operators.

    python tests/python_calls.py [--rows 64] [--columns 256]

Counted are calls of the package's functions and those they make themselves; what happens inside torch is not.
The number does not depend on the machine or on what else it does.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

import maskreid_kernels as kernels

PACKAGE = str(Path(kernels.__file__).parent)
LOSSES = {name: loss for name, loss in kernels.LOSSES.items() if name != "softmax"}


def python_calls(loss: Callable[..., Tensor], rows: int = 64, columns: int = 256) -> Counter[str]:
    """How often which function was called, of the package's and of those that it calls."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(rows) // 4
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        around = (frame, frame.f_back) if frame.f_back else (frame,)
        if event == "call" and any(one.f_code.co_filename.startswith(PACKAGE) for one in around):
            found[frame.f_code.co_qualname] += 1

    def step() -> None:
        torch.autograd.grad(loss(x, y), x)

    step()  # what is made once, at the first call, is not counted
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").partition("\n\n")[0].split()))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=256)
    options = parser.parse_args()
    for name, loss in LOSSES.items():
        print(f"{name:24}{python_calls(loss, options.rows, options.columns).total():5}")


if __name__ == "__main__":
    main()
