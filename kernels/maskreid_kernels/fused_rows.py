"""What the Triton backends do row by row, a launch each: norms, and rows of length 1 with their gradient.

Names: B = rows, D = columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .guards import compute_dtype, first_order_only
from .precision import PRECISIONS
from .row_programs import norms_program, unit_rows_gradient_program, unit_rows_program
from .triton_tiles import Chip, Variant, accumulator
from .unit_rows import EPSILON

ROWS = 4  # of a program
SLAB = 512  # columns in registers at a time


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
        unit_BD: Tensor
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


def variants(columns: int, precision_name: str, chip: Chip = "large") -> list[Variant]:
    """What rows of `columns` columns compile under a preset; on every target alike."""

    rows = PRECISIONS[precision_name].rows
    options = _options(columns, accumulator(rows)[1])
    found = [
        Variant.of(norms_program, rows, {"INVERSE": inverse, "EPSILON": EPSILON} | options)
        for inverse in (True, False)
    ]
    found.append(Variant.of(unit_rows_program, rows, {"EPSILON": EPSILON} | options))
    return [*found, Variant.of(unit_rows_gradient_program, rows, options)]
