"""What the Triton backends do row by row, a launch each: norms, and rows of length 1 with their gradient.

Names: B = rows, D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .first_order import first_order_only
from .inputs import compute_dtype
from .triton_tiles import Variant, accumulator, load_slab
from .unit_rows import EPSILON

ROWS = 4  # of a program
SLAB = 512  # columns in registers at a time


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
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, INVERSE: tl.constexpr, EPSILON: tl.constexpr, ACC: tl.constexpr,
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
    g_ptr, unit_ptr, inverse_ptr, out_ptr, B, D, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr
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


def row_norms(x_BD: Tensor, *, inverse: bool) -> Tensor:
    """|x|^2 by row [B], or 1 / |x| (0 for a row of norm <= 1e-12); float64 for float64 rows, else float32."""
    (rows, columns), (dtype, acc) = x_BD.shape, accumulator(x_BD.dtype)
    out_B = x_BD.new_empty(rows, dtype=dtype)
    if rows:
        options = _options(columns, acc) | {"INVERSE": inverse, "EPSILON": EPSILON}
        norms_program[(triton.cdiv(rows, ROWS),)](x_BD, out_B, rows, columns, **options)
    return out_B


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        (rows, columns), (dtype, acc) = x_BD.shape, accumulator(x_BD.dtype)
        x_BD = x_BD.contiguous()
        unit_BD, inverse_B = x_BD.new_empty((rows, columns), dtype=dtype), x_BD.new_empty(rows, dtype=dtype)
        if rows:
            unit_rows_program[(triton.cdiv(rows, ROWS),)](
                x_BD, unit_BD, inverse_B, rows, columns, EPSILON=EPSILON, **_options(columns, acc)
            )
        ctx.save_for_backward(unit_BD, inverse_B)
        ctx.dtype = x_BD.dtype
        return unit_BD

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient_BD: Tensor) -> Tensor:
        unit_BD, inverse_B = ctx.saved_tensors
        rows, columns = unit_BD.shape
        out_BD = unit_BD.new_empty((rows, columns), dtype=ctx.dtype)
        if rows:
            unit_rows_gradient_program[(triton.cdiv(rows, ROWS),)](
                gradient_BD.contiguous(), unit_BD, inverse_B, out_BD, rows, columns,
                **_options(columns, accumulator(unit_BD.dtype)[1]),
            )  # fmt: skip
        return out_BD


def fused_unit_rows(rows_BD: Tensor) -> Tensor:
    """`unit_rows` of rows of any dtype in the compute dtype: a launch forward, a launch backward."""
    unit_BD: Tensor = _UnitRows.apply(rows_BD)
    assert unit_BD.dtype == compute_dtype(rows_BD.dtype)
    return unit_BD


def _options(columns: int, acc: tl.dtype) -> dict[str, Any]:
    slab = min(max(int(triton.next_power_of_2(columns)), 16), SLAB)
    return {"BLOCK_M": ROWS, "BLOCK_D": slab, "ACC": acc, "num_warps": 4}


def variants(columns: int, precision_name: str, *, amd: bool = False) -> list[Variant]:
    """What rows of `columns` columns compile under a preset."""
    from .precision import PRECISIONS

    rows = PRECISIONS[precision_name].rows
    options = _options(columns, accumulator(rows)[1])
    found = [
        Variant.of(norms_program, rows, {"INVERSE": inverse, "EPSILON": EPSILON} | options)
        for inverse in (True, False)
    ]
    found.append(Variant.of(unit_rows_program, rows, {"EPSILON": EPSILON} | options))
    return [*found, Variant.of(unit_rows_gradient_program, rows, options)]
