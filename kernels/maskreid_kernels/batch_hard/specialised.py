"""Batch-hard's pass with specialised warps (specialised_programs.py): where it is taken, and its launch.

For rows in bfloat16 whose candidates are the rows themselves, on Hopper. The rows are copied in sorted order,
which the copy engine wants; where that copy is too large the pass that gathers them remains
(symmetric_programs.py). Both leave the same keys. Not yet run on a GPU: off there unless the switch says
otherwise or VERIFIED names the GPU.

Gluon is an experimental part of Triton: a version without what this uses leaves the other passes as they are.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from ..symmetric_tiles import switched_on
from ..triton_tiles import INTERPRETED, SortedRows, Variant, chip_of, processors
from .programs import NO_KEY

SWITCH = "MASKREID_TRITON_SPECIALISED"
# GPUs, by torch's name, on which `kernels/bench/gpu.py` found this pass right and no slower: date and commit.
VERIFIED: dict[str, str] = {}
COPY_BYTES = 256 << 20  # of the sorted rows
MAX_PLACES = 1 << 23  # keeps the number of a tile in int32
OPTIONS = {"BLOCK_M": 256, "BLOCK_N": 128, "BLOCK_D": 64, "STAGES": 4, "num_warps": 4}


@cache
def programs() -> ModuleType | None:
    """The module of the program, None where this Triton lacks what it uses."""
    try:
        from . import specialised_programs
    except ImportError:
        return None
    module: ModuleType = specialised_programs
    return module


def why_not_specialised(
    anchors: int, places: int, columns: int, rows: torch.dtype, device: torch.device
) -> str | None:
    """Why a pass over rows of `columns` columns stored in `rows` is not this one; None where it is."""
    if anchors < places:
        return "each rank has a part of the rows"
    if rows != torch.bfloat16:
        return "specialised warps are for rows in bfloat16"
    if not switched_on(device, SWITCH, VERIFIED):
        return f"specialised warps are off, no GPU has verified them ({SWITCH}=1: on)"
    there = not INTERPRETED and device.type == "cuda" and torch.cuda.is_available()
    if not there or chip_of(device) != "wide" or programs() is None:
        return "specialised warps are for Hopper, and for a Triton with Gluon"
    fits = 0 < places <= MAX_PLACES and places * columns * 2 <= COPY_BYTES
    return None if fits else f"a sorted copy of {places} rows is too large"


def nearest_keys(x_ND: Tensor, square_N: Tensor, rows: SortedRows, *, cosine: bool) -> Tensor:
    """int64 [1, N], as `symmetric_negatives_program` leaves them, packed."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    module, (places, columns) = programs(), x_ND.shape
    assert module is not None
    blocks = triton.cdiv(places, OPTIONS["BLOCK_M"])
    missing = blocks * OPTIONS["BLOCK_M"] - places
    sorted_ND = x_ND.index_select(0, rows.order_N)
    squares = torch.ones_like(square_N) if cosine else square_N.index_select(0, rows.order_N)
    key_1N = rows.order_N.new_full((1, places), NO_KEY.value)
    box = [OPTIONS["BLOCK_N"], OPTIONS["BLOCK_D"]]
    tiles = blocks * (blocks + 1)
    module.specialised_negatives_program[(min(processors(x_ND.device), tiles),)](
        TensorDescriptor.from_tensor(sorted_ND, box, module.slab_layout(*box)), pad(squares, (0, missing)),
        pad(rows.start_N, (0, missing)), pad(rows.stop_N, (0, missing)), key_1N, tiles, blocks, places,
        columns, **OPTIONS,
    )  # fmt: skip
    return key_1N


def variants() -> list[Variant]:
    """What any batch compiles; nothing where this Triton lacks Gluon."""
    module = programs()
    if module is None:
        return []
    box = [OPTIONS["BLOCK_N"], OPTIONS["BLOCK_D"]]
    types: dict[str, Any] = {"x_desc": f"tensordesc<bf16{box},{module.slab_layout(*box)!r}>"}
    types |= {"square_ptr": "*fp32", "start_ptr": "*i32", "stop_ptr": "*i32", "key_ptr": "*i64"}
    types |= dict.fromkeys(("tiles", "blocks", "N", "D"), "i32")
    return [Variant(module.specialised_negatives_program, types, dict(OPTIONS))]
