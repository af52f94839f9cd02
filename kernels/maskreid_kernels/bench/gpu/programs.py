"""A program that reads the L2 cache and computes next to nothing: the rate that tiles could be fed at."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_program(x_ptr, out_ptr, blocks, times, BLOCK: tl.constexpr):
    """Sum of `times` blocks of int32, each from another place of a buffer of `blocks` blocks, past the L1
    cache."""
    place = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.int32)
    for step in range(times):
        at = (place + step * 37) % blocks
        total ^= tl.load(x_ptr + at * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(out_ptr + place * BLOCK + tl.arange(0, BLOCK), total)
