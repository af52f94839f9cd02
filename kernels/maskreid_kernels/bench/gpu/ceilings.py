"""What the machine can do at all: copies, the product, reads of the L2 cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..figures import Quantiles
from .programs import read_program
from .results import Figure
from .setting import Batch, Setting, timed

L2_BYTES = 16 << 20  # fits the cache, far more than the L1s hold together
BLOCK = 4096


def ceilings(setting: Setting) -> Iterator[Figure]:
    """Copy (bytes read and written), X X^T at both widths, and the rate of reads that hit the L2 cache."""
    yield Figure.of("copy", copy_rate(setting), "TB/s")
    for columns in (2048, 256):
        batch = Batch.of(setting, "n_pair", 65536, columns)
        yield Figure.of(f"product, D = {columns}", batch.product_ms(setting))
        del batch
    yield Figure.of("L2 reads", l2_rate(setting), "TB/s")


def copy_rate(setting: Setting) -> Quantiles:
    """TB/s from memory to memory, read and written."""
    size = (1 << 12) if setting.dry else (2 << 30)
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return _rate(timed(setting, lambda: target.copy_(source)), 2 * size)


def l2_rate(setting: Setting) -> Quantiles:
    """TB/s of a buffer of 16 MiB that every processor reads again and again."""
    block = 64 if setting.dry else BLOCK
    blocks = 8 if setting.dry else L2_BYTES // (4 * BLOCK)
    times = setting.times(256)
    programs = 2 if setting.dry else 8 * torch.cuda.get_device_properties(0).multi_processor_count
    x = torch.ones(blocks * block, dtype=torch.int32, device=setting.device)
    out = torch.empty(programs * block, dtype=torch.int32, device=setting.device)
    found = timed(setting, lambda: read_program[(programs,)](x, out, blocks, times, BLOCK=block))
    return _rate(found, programs * times * block * 4)


def _rate(found: Quantiles, size: int) -> Quantiles:
    """TB/s from ms of `size` bytes; the slowest time is the lowest rate."""
    return Quantiles(size / found.y50 / 1e9, size / found.y80 / 1e9, size / found.y20 / 1e9)
