"""The Triton programs that go row by row: norms, rows of length 1 and their gradient. B = rows, D =
columns."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import load_slab


@triton.jit
def square_sums(x_ptr, offset, ok, D, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """[rows] sum of squares of the rows at `offset`, in ACC."""
    total = tl.zeros((offset.shape[0],), ACC)
    for d in range(0, D, BLOCK_D):
        x = load_slab(x_ptr, offset, ok, d, D, BLOCK_D, False).to(ACC)
        total += tl.sum(x * x, 1)
    return total


@triton.jit
def inverse_of(squares, EPSILON: tl.constexpr):
    """1 / |x| of |x|^2; 0 for a row that has no direction. NaN stays NaN."""
    norm = tl.sqrt(squares)
    return tl.where(norm <= EPSILON, 0.0, 1 / tl.where(norm <= EPSILON, 1.0, norm))


@triton.jit(do_not_specialize=["B"])
def norms_program(
    x_ptr, out_ptr, B, D,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, INVERSE: tl.constexpr, EPSILON: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """out [B]: |x|^2, or with INVERSE 1 / |x|."""
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = r < B
    squares = square_sums(x_ptr, r.to(tl.int64) * D, ok, D, BLOCK_D, ACC)
    tl.store(out_ptr + r, inverse_of(squares, EPSILON) if INVERSE else squares, mask=ok)


@triton.jit(do_not_specialize=["B"])
def unit_rows_program(
    x_ptr, unit_ptr, inverse_ptr, B, D,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, EPSILON: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """unit = x / |x| and inverse = 1 / |x|, both in ACC."""
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok, offset = r < B, r.to(tl.int64) * D
    inverse = inverse_of(square_sums(x_ptr, offset, ok, D, BLOCK_D, ACC), EPSILON)
    tl.store(inverse_ptr + r, inverse, mask=ok)
    for d in range(0, D, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        x = load_slab(x_ptr, offset, ok, d, D, BLOCK_D, False).to(ACC)
        inside = ok[:, None] & (column < D)[None, :]
        tl.store(unit_ptr + offset[:, None] + column[None, :], x * inverse[:, None], mask=inside)


@triton.jit(do_not_specialize=["B"])
def unit_rows_gradient_program(
    g_ptr, unit_ptr, inverse_ptr, out_ptr, B, D,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = (g - unit (unit . g)) inverse."""
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok, offset = r < B, r.to(tl.int64) * D
    inverse = tl.load(inverse_ptr + r, mask=ok, other=0.0)
    along = tl.zeros((BLOCK_M,), ACC)
    for d in range(0, D, BLOCK_D):
        g = load_slab(g_ptr, offset, ok, d, D, BLOCK_D, False)
        along += tl.sum(g * load_slab(unit_ptr, offset, ok, d, D, BLOCK_D, False), 1)
    for d in range(0, D, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        g = load_slab(g_ptr, offset, ok, d, D, BLOCK_D, False)
        unit = load_slab(unit_ptr, offset, ok, d, D, BLOCK_D, False)
        inside = ok[:, None] & (column < D)[None, :]
        out = (g - unit * along[:, None]) * inverse[:, None]
        at = out_ptr + offset[:, None] + column[None, :]
        tl.store(at, out.to(out_ptr.dtype.element_ty), mask=inside)
