"""What a computed measure may be wrong by.

Let u = 2^-24, K the columns, L the columns of a slab, and for one pair S = sum_i |q_i g_i| <= |q| |g| (Cauchy
and Schwarz). The measure is taken slab by slab: p = sum of q_i g_i over a slab, by the matrix instruction,
from an accumulator of zero; then t <- t + p * slope, in float32 by IEEE 754, on the ordinary units.

1. Within a slab. Products of bfloat16 and float16 are exact in float32 (16 and 22 bits). The matrix
   instruction adds k of them to the accumulator; what is known of it (Fasi, Higham, Mikaitis, Pranesh,
   Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7, 2021) is that the k + 1 terms are
   aligned to the largest and cut off, not rounded, below 2^-23 of it, and the sum is cut off again. So one
   instruction loses at most (k + 2) 2^-23 S_slab, where S_slab is the sum of the slab's |q_i g_i| (the
   accumulator never exceeds it), and a slab of L / k instructions, k >= 4, at most 1.5 L 2^-23 S_slab =
   3 L u S_slab. Taken here: 4 L u. A chain of float32 operations (no matrix instruction) stays below L u.
2. tf32x3 splits x into hi + lo with |x - hi| <= 2^-10 |x| and |x - hi - lo| <= 2^-20 |x| (for cut-off
   halves; rounded ones are 2 and 4 times closer) and adds hi hi, hi lo and lo hi, exact products all: 3 L
   terms instead of L, whose absolute sum is at most 1.004 S_slab. Left out are lo lo and the remainders:
   3.1 2^-20 S. Taken here: 2^-18.
3. Across slabs: ceil(K / L) steps, each at most two roundings of values of at most S |slope| + offset: the
   product's, which over all steps is u S |slope|, and the sum's. Then slope and offset, and rows that were
   float64, are themselves rounded once: 2 u + u + u. Together at most (K / L + 8) u.
4. Where elements or products lie below float32's normal range, 2^-126, they may count as 0: K 2^-126 |x| for
   norms of at most 2^30 and, as norms are at least 2^-30, below 2^-40 |q| |g|.

All this is relative to the measure's unit: |q| for cosine, where S |slope| <= |q|; (|q| + s)^2 for Euclidean
with s >= |g|, where 2 S + |g|^2 <= 2 |q| |g| + |g|^2 <= (|q| + s)^2. The factor 1.01 holds all products of
two errors, as the whole is below 2^-7.
"""

from __future__ import annotations

import math

import torch

ROUNDOFF = 2.0**-24
UNIT_SPAN = (2.0**-30, 2.0**30)  # of norms other than 0
# Columns of a slab: products and sums of a longer one cost less, and its bound is wider.
SLAB_COLUMNS = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}


def counted_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that rows are multiplied in."""
    return dtype if dtype in SLAB_COLUMNS else torch.float32


def error_bound(columns: int, rows: torch.dtype) -> float:
    """Of a computed measure from the exact one, relative to its unit; `rows`: the dtype given.

    Units: cosine |q|; Euclidean (|q| + s)^2, s at least the largest |g|. Holds for every way of multiplying
    that `count_below` takes. Raises ValueError from 2^17 columns on.
    """
    if columns >= 1 << 17:
        raise ValueError(f"{columns} columns: rows have fewer than {1 << 17}")
    stored = counted_dtype(rows)
    slab, parts = SLAB_COLUMNS[stored], 3 if stored == torch.float32 else 1
    roundings = 4 * parts * slab + math.ceil(columns / slab) + 8
    split = 2.0**-18 if parts > 1 else 0.0
    return 1.01 * (roundings * ROUNDOFF + split + 2.0**-40)
