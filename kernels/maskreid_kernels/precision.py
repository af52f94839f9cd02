"""Precision presets of the Triton backends: how the dot products that mine and sum are computed.

What is picked is computed again in full precision whatever the preset: a positive's similarity, a distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .backends import interpreted


@dataclass(frozen=True)
class Precision:
    """The dtype rows are stored in for the dot products, and Triton's `input_precision`."""

    rows: torch.dtype
    dot: str


# Prices and errors stand in kernels/README.md.
PRECISIONS = {
    "bf16": Precision(torch.bfloat16, "ieee"),  # products of bfloat16 are exact in float32
    "bf16x3": Precision(torch.float32, "bf16x3"),
    "tf32": Precision(torch.float32, "tf32"),
    "tf32x3": Precision(torch.float32, "tf32x3"),
    "ieee": Precision(torch.float32, "ieee"),
}
# torch.set_float32_matmul_precision's words: what its user asks of matrix products holds here too.
OF_TORCH = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}


def matmul_precision() -> str:
    """What the user asked of float32 matrix products on a GPU, in the words of set_float32_matmul_precision.

    By that function, or by torch's newer `fp32_precision` settings, after which the older getter raises
    RuntimeError.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        newer = torch.backends.cuda.matmul.fp32_precision  # of the product, or inherited from torch.backends
        return {"tf32": "high", "bf16": "medium"}.get(newer, "highest")


def choose_precision(precision: str, dtype: torch.dtype) -> Precision:
    """The preset for rows of `dtype`. "auto": bfloat16 and float16 rows "bf16", float32 by torch's matmul
    precision.

    float64 is always computed in float64. Raises ValueError for bfloat16 where programs are interpreted.
    """
    if dtype == torch.float64:
        return Precision(torch.float64, "ieee")
    if precision == "auto":
        low = dtype in (torch.bfloat16, torch.float16)
        precision = "bf16" if low else OF_TORCH[matmul_precision()]
        if precision == "tf32x3" and torch.version.hip is not None:
            precision = "ieee"  # AMD's compiler has no tf32x3
    preset = PRECISIONS[precision]
    if preset.rows == torch.bfloat16 and interpreted():
        raise ValueError(
            'precision "bf16": Triton\'s interpreter computes bfloat16 wrongly; use "ieee" there'
        )
    return preset


def preset_of_rows(precision: str, dtype: torch.dtype, backend: str) -> str:
    """`precision` for rows that were cast from `dtype` to float32: "auto" would no longer see what they
    were."""
    low = dtype in (torch.bfloat16, torch.float16)
    return "bf16" if low and precision == "auto" and backend in ("auto", "triton") else precision
