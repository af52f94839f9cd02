"""Figures that choose: which backend from how many rows, marks or bands, and the shape of a tile."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import triton

from ...triton_tiles import chip_of
from .. import eager
from ..providers import OURS
from .passes import forward_pass
from .results import Figure
from .setting import Batch, Setting, changed, timed

CROSSOVER_ROWS = (256, 512, 1024, 2048, 4096, 8192)
COMPILED = ("ranking", "batch_hard")  # a compilation takes seconds
SHARES = (0.001, 0.003, 0.01, 0.02, 0.04)
ALL = 1 << 30
# Rows, columns, depth, warps and stages of a tile.
TILES = ((128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (64, 256, 64, 8, 3))


def crossover(setting: Setting) -> Iterator[Figure]:
    """dense, triton, auto, eager and compiled from small batches on, D = 256; `auto` beside the best of the
    last two."""
    for kernel in OURS:
        compiled = setting.compiled(getattr(eager, kernel), dynamic=True) if kernel in COMPILED else None
        worst, active = float("inf"), 1.0
        for rows in CROSSOVER_ROWS[:: 6 if setting.dry else 1]:
            # 5 % violators: of a few hundred negatives, 1 % would leave many anchors without one.
            batch = Batch.of(setting, kernel, rows, 256, 0.05)
            forms = {name: batch.ours(name) for name in ("dense", "triton", "auto")}
            forms["eager"] = batch.eager()
            if compiled is not None:
                forms["compiled"] = batch.eager(compiled)
            found = {name: batch.ms(setting, form, 0.1) for name, form in forms.items()}
            for name, quantiles in found.items():
                yield Figure.of(f"{kernel} {rows}, {name}", quantiles, active=batch.active)
            peers = [found[name].y50 for name in ("eager", "compiled") if name in found]
            worst, active = min(worst, min(peers) / found["auto"].y50), min(active, batch.active)
        key = f"{kernel} 256 to 8192, auto beside the best of eager and compiled"
        yield Figure(key, worst, "x", active=active).promised(1.0, at_least=True)


def marks(setting: Setting) -> Iterator[Figure]:
    """The ranking loss by marks alone and by bands alone, 16384 rows: from which share on the bands win."""
    forward: Any = importlib.import_module("maskreid_kernels.ranking.triton_forward")
    for columns in setting.widths:
        for share in SHARES[:: 4 if setting.dry else 1]:
            batch = Batch.of(setting, "ranking", 16384, columns, share)
            what = f"ranking 16384, D = {columns}, {100 * share:g} % violators"
            with changed(forward, SPARSE_UP_TO=1.0, MARK_BYTES=ALL):
                by_marks = batch.ms(setting, batch.ours(), 0.5)
            with changed(forward, SPARSE_UP_TO=-1.0, FEW_MARKS=-1):  # no anchor's marks are few enough
                by_bands = batch.ms(setting, batch.ours(), 0.5)
            yield Figure.of(f"{what}, by marks", by_marks, active=batch.active)
            yield Figure.of(f"{what}, by bands", by_bands, active=batch.active)


def tiles(setting: Setting) -> Iterator[Figure]:
    """The passes of batch-hard and N-pair under other tiles, 32768 rows; beside the one that is shipped."""
    for kernel, folder in (("batch_hard", "batch_hard"), ("n_pair", "logsumexp")):
        module: Any = importlib.import_module(f"maskreid_kernels.{folder}.triton")
        for columns in setting.widths:
            batch = Batch.of(setting, kernel, 32768, columns)
            key = f"{kernel} forward pass 32768, D = {columns}, tile"
            yield Figure.of(f"{key} as shipped", timed(setting, forward_pass(batch), 0.3))
            shipped = module.tile_shape(
                setting.columns(columns), batch.x_ND.dtype, chip=chip_of(batch.x_ND.device), wide=True
            )
            for m, n, d, warps, stages in TILES[:: 4 if setting.dry else 1]:
                tile = replace(
                    shipped, block_m=m, block_n=n, block_d=d, warps=warps, stages=stages,
                    one_slab=setting.columns(columns) <= d,
                )  # fmt: skip
                if setting.dry:
                    tile = shipped
                name = f"{key} {m}x{n}x{d}, {stages} stages"
                try:
                    with changed(module, tile_shape=lambda *_, tile=tile, **__: tile):
                        yield Figure.of(name, timed(setting, forward_pass(batch), 0.3))
                except triton.runtime.errors.OutOfResources as error:
                    yield Figure(name, None, "ms", note=str(error).splitlines()[0])
            del batch
            if not setting.dry:
                torch.cuda.empty_cache()
