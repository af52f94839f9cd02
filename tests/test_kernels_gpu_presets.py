"""Every loss of the Triton backend under every precision preset, in programs that walk many tiles, against
float64.

On a GPU a batch of a few hundred rows gives each program one tile, a case of its own to the compiler. So the
number of processors is patched here: programs walk all tiles in one chunk, or in a few chunks. Without a GPU
the same tests run in Triton's interpreter at tiny sizes, in float32 (ieee) and float64, to test the tests.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

import kernel_checks
from kernel_cases import LOSSES, PRESETS, Preset, batch
from kernel_checks import DEVICE, GPU, Step, pick
from maskreid_kernels import symmetric_tiles, triton_tiles
from maskreid_kernels.batch_hard import specialised
from maskreid_kernels.batch_hard import triton as batch_hard_triton
from maskreid_kernels.logsumexp import triton as logsumexp_triton
from maskreid_kernels.logsumexp import triton_bands
from maskreid_kernels.ranking import triton_backward, triton_forward

MODULES = (batch_hard_triton, logsumexp_triton, triton_bands, triton_forward)
INTERPRETED = [preset for preset in PRESETS if preset.precision == "ieee" or preset.rows == torch.float64]
SHAPES = pick(
    on_gpu=[(rows, columns) for rows in (700, 3001) for columns in (64, 130, 256, 512, 2048)],
    in_ci=[(700, 130), (700, 256), (700, 2048)],
    interpreted=[(44, 40)],
)
IN_CI = [PRESETS[0], PRESETS[2]]  # the other Triton tests are in float32 and float64
PRESETS_HERE = pick(PRESETS, IN_CI, INTERPRETED[1:])
CHUNKS = ("one chunk", "few chunks")
WALKS = pick(
    on_gpu=list(product(PRESETS, CHUNKS)),
    in_ci=list(product(IN_CI, CHUNKS)),
    interpreted=list(zip(INTERPRETED, CHUNKS, strict=True)),
)
ROWS, COLUMNS = SHAPES[0]
TINY = triton_tiles.TileShape(16, 16, 32, warps=4, stages=1, one_slab=False)
by_preset = pytest.mark.parametrize("preset", PRESETS_HERE, ids=str)
by_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter: some forty rows are three tiles."""
    for module in MODULES if not GPU else ():
        monkeypatch.setattr(module, "tile_shape", lambda columns, rows, **_: TINY)


def walk(monkeypatch: pytest.MonkeyPatch, rows: int, chunks: str) -> None:
    """Programs walk all tiles of a row block ("one chunk"), or about half of them ("few chunks")."""
    few = -(-rows // 250) if GPU else 1
    set_processors(monkeypatch, 0 if chunks == "one chunk" else few)
    monkeypatch.setattr(triton_tiles, "SIDE_BY_SIDE", 1)  # else at least so many chunks


def set_processors(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(triton_tiles, "processors", lambda device: number)


def rows_as(preset: Preset, rows: int, columns: int, crowd: int = 0) -> tuple[Tensor, Tensor]:
    x, y = batch(rows, columns, crowd)
    return x.to(preset.rows).to(DEVICE), y.to(DEVICE)


def step(name: str, x: Tensor, y: Tensor, **options: str) -> Step:
    rows = x.detach().clone().requires_grad_()
    loss = LOSSES[name](rows, y, **options)
    loss.backward()
    assert rows.grad is not None and rows.grad.dtype == x.dtype and rows.grad.shape == x.shape
    return loss.detach(), rows.grad


def triton_step(name: str, x: Tensor, y: Tensor, preset: Preset) -> Step:
    return step(name, x, y, backend="triton", precision=preset.precision)


def check(name: str, x: Tensor, y: Tensor, preset: Preset, share: float = 0.5) -> None:
    """Equal bits twice, close to float64, and a gradient on at least that share of the rows."""
    own = kernel_checks.same_bits(lambda: triton_step(name, x, y, preset))

    def expected() -> Step:
        exact = step(name, x.double(), y, backend="reference")
        kernel_checks.active(exact[1], share)
        return exact

    tolerance = preset.tolerance(name)
    kernel_checks.near(own, expected, value=tolerance, gradient=tolerance)


@pytest.mark.parametrize("preset,chunks", WALKS, ids=str)
@by_loss
@pytest.mark.parametrize("rows,columns", SHAPES)
def test_against_float64(
    rows: int,
    columns: int,
    name: str,
    preset: Preset,
    chunks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk(monkeypatch, rows, chunks)
    if name == "ranking_dense":
        always_dense(monkeypatch)
    check(name, *rows_as(preset, rows, columns), preset)


def always_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking loss's backward by bands, of which there are several, for all anchors."""
    monkeypatch.setattr(triton_forward, "FEW_MARKS", -1)
    monkeypatch.setattr(triton_forward, "SPARSE_UP_TO", -1.0)
    monkeypatch.setattr(triton_backward, "BAND_BYTES", 1 << 18)


@pytest.mark.skipif(not GPU, reason="the interpreter has one processor: one chunk")
@by_preset
@by_loss
def test_as_shipped(name: str, preset: Preset) -> None:
    """On as many processors as there are."""
    rows, columns = SHAPES[-1]
    check(name, *rows_as(preset, rows, columns), preset)


@pytest.mark.skipif(not GPU, reason="test_kernels_triton_symmetric.py has what the interpreter can run")
@pytest.mark.parametrize("preset", pick(PRESETS, IN_CI[:1], IN_CI[:1]), ids=str)
@pytest.mark.parametrize("name", ["batch_hard", "n_pair", "circle", "ranking_sparse", "ranking_dense"])
@pytest.mark.parametrize("rows,columns", pick(SHAPES, SHAPES[1:], SHAPES))
def test_symmetric_passes(
    rows: int, columns: int, name: str, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On few processors, so that a program walks several rows of several tiles."""
    monkeypatch.setenv(symmetric_tiles.SWITCH, "1")
    monkeypatch.setattr(symmetric_tiles, "processors", lambda device: 1)
    check(name, *rows_as(preset, rows, columns), preset)


@pytest.mark.skipif(not GPU or torch.cuda.get_device_capability() != (9, 0), reason="for Hopper")
@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("batch_hard")])
@pytest.mark.parametrize("rows,columns", pick([*SHAPES, (250, 64)], SHAPES[1:2], SHAPES))
def test_specialised_warps(rows: int, columns: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program several tiles; then a tile and less."""
    monkeypatch.setenv(specialised.SWITCH, "1")
    monkeypatch.setattr(specialised, "processors", lambda device: 3)
    for preset in PRESETS[:2]:
        x, y = rows_as(preset, rows, columns)
        assert specialised.why_not_specialised(rows, rows, columns, torch.bfloat16, x.device) is None
        check(name, x, y, preset)
        for few, labels in ((x[:1], y[:1]), (x[:12], torch.arange(12, device=DEVICE))):
            kernel_checks.nothing(triton_step(name, few, labels, preset))


@by_preset
@by_loss
def test_one_identity_of_many_rows(name: str, preset: Preset) -> None:
    """Sums over an identity take several steps of 16 rows."""
    rows, crowd = (500, 200) if GPU else (36, 20)
    # The crowd itself violates no sparse margin: the rows that do are those of the others.
    check(name, *rows_as(preset, rows, COLUMNS, crowd), preset, share=0.4)


@pytest.mark.skipif(not GPU or not kernel_checks.VALUES, reason="a race shows on a GPU only")
@pytest.mark.parametrize("preset", PRESETS, ids=str)
@pytest.mark.parametrize("name", ["ranking_sparse", "ranking_dense"])
def test_one_identity_of_many_rows_300_times(name: str, preset: Preset) -> None:
    """Sums of many steps, in one program: whatever order its threads run in."""
    x, y = rows_as(preset, 500, 64, 200)
    kernel_checks.same_bits(lambda: triton_step(name, x, y, preset), repeats=300)


@by_preset
@by_loss
def test_odd_views(name: str, preset: Preset) -> None:
    """Rows of a wider tensor, from its second row and column on: neither contiguous nor aligned."""
    x, y = rows_as(preset, 400 if GPU else 12, 33)
    wide = torch.full((len(x) + 1, 35), 3.0, dtype=x.dtype, device=DEVICE)
    wide[1:, 1:34] = x
    leaf = wide.requires_grad_()
    loss = LOSSES[name](leaf[1:, 1:34], y, backend="triton", precision=preset.precision)
    loss.backward()
    assert leaf.grad is not None
    kernel_checks.equal((loss.detach(), leaf.grad[1:, 1:34]), triton_step(name, x, y, preset))


@by_preset
@by_loss
def test_nothing_to_learn_from(name: str, preset: Preset) -> None:
    """No rows, one identity, no positives."""
    x, y = rows_as(preset, 12, 33)
    for rows, labels in ((x[:0], y[:0]), (x, torch.zeros_like(y)), (x, torch.arange(12, device=DEVICE))):
        kernel_checks.nothing(triton_step(name, rows, labels, preset))
