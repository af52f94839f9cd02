"""What only a GPU, or a user of torch's newer settings, would have met: devices, capture, precision, empty
grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import maskreid_kernels as kernels
from gloo import run_ranks
from maskreid_kernels import compiled, triton_tiles
from maskreid_kernels.precision import choose_precision, matmul_precision
from maskreid_kernels.ranks import RankLayout, agree_on_layouts

LOSSES = {name: loss for name, loss in kernels.LOSSES.items() if name != "softmax"}


def batch(rows: int, columns: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator), torch.arange(rows) // 3


@pytest.fixture
def a_gpu_of_many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are cut as on a GPU: here, where programs run one after another, one processor is assumed."""
    monkeypatch.setattr(triton_tiles, "processors", lambda device: 132)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_few_rows_on_many_processors(name: str, rows: int, a_gpu_of_many_processors: None) -> None:
    x, y = batch(rows)
    mine, reference = (x.clone().requires_grad_() for _ in range(2))
    loss = LOSSES[name](mine, y, backend="triton", precision="ieee")
    expected = LOSSES[name](reference, y, backend="reference")
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_chunks_of_a_gpu() -> None:
    tile = triton_tiles.TileShape(128, 128, 64, 8, 3, one_slab=False)
    for processors in (1, 5, 132):
        for anchors, candidates in [(0, 0), (1, 1), (700, 3001), (65536, 65536), (1 << 20, 1 << 20)]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(triton_tiles, "processors", lambda device, count=processors: count)
                per_chunk, chunks = triton_tiles.column_chunks(anchors, candidates, tile, torch.device("cpu"))
            tiles = max(math.ceil(candidates / 128), 1)
            assert per_chunk >= 1 and (chunks - 1) * per_chunk < tiles <= chunks * per_chunk


@pytest.fixture
def precision_settings() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def test_torchs_newer_precision_settings(precision_settings: None) -> None:
    assert matmul_precision() == "highest"
    torch.set_float32_matmul_precision("medium")
    assert matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert matmul_precision() == "high"
    assert choose_precision("auto", torch.float32).dot == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert matmul_precision() == "highest"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]  # of everything
    assert matmul_precision() == "high"
    x, y = batch(6)
    for loss in LOSSES.values():
        assert loss(x, y, backend="triton").isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_launches_go_to_the_device_of_the_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device: every program must run inside `torch.cuda.device_of(rows)`."""
    inside: list[Tensor] = []
    launched: list[bool] = []

    class DeviceOf:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __enter__(self) -> None:
            inside.append(self.rows)

        def __exit__(self, *error: object) -> None:
            inside.pop()

    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(bool(inside))
        return launch(self, *arguments, **options)

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    monkeypatch.setattr(GridExecutor, "__call__", watched)
    x, y = batch(9)
    LOSSES[name](x, y, backend="triton", precision="ieee")  # a backward runs under autograd's own guard
    assert launched and all(launched)


@pytest.mark.parametrize("value", [0.15, 1 / 3, math.pi * 1e5, 0.0, -2.5e-4])
def test_constants_keep_their_digits(value: float) -> None:
    high, low = triton_tiles.split_float(value)
    assert high + low == pytest.approx(value, rel=2**-46)
    assert torch.tensor(high).double() == high and torch.tensor(low).double() == pytest.approx(low, rel=1e-7)


def test_which_losses_a_cuda_graph_can_capture() -> None:
    unsafe = torch.ops.maskreid_kernels.loss_with_gradient.default
    capturable = torch.ops.maskreid_kernels.capturable_loss_with_gradient.default
    assert torch.Tag.cudagraph_unsafe in unsafe.tags and torch.Tag.cudagraph_unsafe not in capturable.tags
    x, y = batch(12)

    def operators(loss: Callable[..., Tensor], **options: object) -> set[str]:
        torch._dynamo.reset()
        seen: set[str] = set()

        def record(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
            seen.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
            return graph.forward

        torch.compile(lambda r: loss(r, y, **options), backend=record)(x)
        return {name for name in seen if "loss_with_gradient" in name}

    safe = {"maskreid_kernels.capturable_loss_with_gradient.default"}
    assert operators(kernels.batch_hard_loss) == safe
    assert operators(kernels.batch_hard_loss, backend="chunked") == {str(unsafe)}  # reads what it applies
    assert operators(kernels.ranking_loss) == operators(kernels.circle_loss) == {str(unsafe)}


def test_batch_hard_reads_nothing_on_the_host() -> None:
    """What a CUDA graph could not capture: an operator that brings a number to the host."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            assert function is not torch.ops.aten._local_scalar_dense.default, "a host sync"
            assert "nonzero" not in str(function) and "masked_select" not in str(function), "a host sync"
            return function(*arguments, **(options or {}))

    x, y = batch(12)
    rows = x.requires_grad_()
    for backend in ("dense", "triton"):
        from triton.runtime.interpreter import GridExecutor

        with pytest.MonkeyPatch.context() as patch, Watch():
            patch.setattr(
                GridExecutor, "__call__", lambda self, *arguments, **options: None
            )  # not the interpreter's
            kernels.batch_hard_loss(rows, y, backend=backend).backward()


def one_rank(rank: int, world: int) -> None:
    x, y = batch(12)
    for name in ("all_gather", "all_gather_into_tensor"):
        setattr(dist, name, None)  # any call fails
    layout, _ = agree_on_layouts(x, None, None, dist.group.WORLD)
    assert layout == RankLayout(None, 0, (12,))
    for loss in LOSSES.values():
        assert torch.equal(loss(x, y, group=dist.group.WORLD), loss(x, y))
    with pytest.raises(ValueError, match="labels: 2 entries for 12 rows"):
        kernels.ranking_loss(x, y[:2], group=dist.group.WORLD)


def test_a_group_of_one_rank_is_no_group(tmp_path: Path) -> None:
    run_ranks(one_rank, 1, tmp_path)


def test_capturable_losses() -> None:
    found = {name for name, registered in compiled.REGISTERED.items() if "auto" in registered.capturable}
    assert found == {"batch_hard", "softmax"}


@pytest.mark.parametrize(
    "major,shared_kb,chip",
    [(8, 163, "large"), (8, 99, "small"), (9, 227, "wide"), (10, 227, "rows"), (12, 99, "small")],
)
def test_tiles_fit_the_chip(major: int, shared_kb: int, chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=major, shared_memory_per_block_optin=shared_kb << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(triton_tiles, "INTERPRETED", False)
    assert triton_tiles.chip_of(torch.device("cuda")) == chip
    for columns in (64, 256, 2048):
        tile = triton_tiles.tile_shape(columns, torch.bfloat16, chip=chip, wide=True)
        both_operands = (
            2 * (tile.block_m + tile.block_n) * tile.block_d * (1 if tile.one_slab else tile.stages)
        )
        assert both_operands <= shared_kb << 10, (columns, tile)
        assert tile.block_n == (256 if chip in ("wide", "rows") and columns > 256 else 128)
