"""Losses inside torch.compile and under autocast: the same numbers, in one graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import maskreid_kernels as kernels
from gloo import run_ranks

LOSSES: dict[str, Callable[..., Tensor]] = {
    "ranking": lambda x, y, **o: kernels.ranking_loss(x, y, margin=0.4, **o),
    "batch_hard": lambda x, y, **o: kernels.batch_hard_loss(x, y, **o),
    "batch_hard_soft": lambda x, y, **o: kernels.batch_hard_loss(x, y, margin="soft", normalize=True, **o),
    "n_pair": lambda x, y, **o: kernels.n_pair_loss(x, y, scale=4.0, **o),
    "all_pairs": lambda x, y, **o: kernels.all_pairs_loss(x, y, **o),
    "circle": lambda x, y, **o: kernels.circle_loss(x, y, gamma=16, **o),
    "supervised_contrastive": lambda x, y, **o: kernels.supervised_contrastive_loss(x, y, **o),
    "softmax": lambda x, y, **o: kernels.softmax_loss(x, y, **o),
}


class Trained(nn.Module):
    def __init__(self, loss: Callable[..., Tensor], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(10, 12)
        self.loss, self.options = loss, options

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * self.loss(self.layer(x), y, **self.options)


def batch(rows: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 10, generator=generator), torch.randint(7, (rows,), generator=generator)


def step(module: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    module.zero_grad()
    loss = module(x, y)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_model_equals_eager(name: str) -> None:
    torch._dynamo.reset()  # or the losses together exceed the limit of recompilations
    module = Trained(LOSSES[name])
    compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    for rows in (30, 41):  # the second may compile anew with a dynamic size
        for found, expected in zip(step(compiled, *batch(rows)), step(module, *batch(rows)), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("name", "backend"), [("batch_hard", "reference"), ("ranking", "chunked")])
def test_inductor_and_named_backends(name: str, backend: str) -> None:
    torch._dynamo.reset()
    module = Trained(LOSSES[name], backend=backend)
    compiled: Any = torch.compile(module, fullgraph=True)
    for found, expected in zip(step(compiled, *batch()), step(module, *batch()), strict=True):
        torch.testing.assert_close(found, expected)


FRESH = """
import torch
from test_kernels_compile import LOSSES, Trained, batch, step

for name in ("ranking", "batch_hard"):
    module = Trained(LOSSES[name], backend="reference")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for found, expected in zip(step(compiled, *batch()), step(module, *batch()), strict=True):
        torch.testing.assert_close(found, expected)
    print(name)
"""


def test_the_first_call_of_a_process_may_be_compiled() -> None:
    """Nothing is made on first use that the compiler cannot enter. Of these two the reference backend is one
    graph."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent / "kernels")))
    environment = os.environ | {"PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["ranking", "batch_hard"]


def test_statistics_and_no_gradient() -> None:
    x, y = batch()
    compiled = torch.compile(kernels.ranking_loss_with_statistics, backend="aot_eager", fullgraph=True)
    loss, statistics = compiled(x, y)
    expected, expected_statistics = kernels.ranking_loss_with_statistics(x, y)
    torch.testing.assert_close(loss, expected)
    for found, true in zip(vars(statistics).values(), vars(expected_statistics).values(), strict=True):
        torch.testing.assert_close(found, true)


def test_operator_is_registered_as_torch_wants_it() -> None:
    x, y = batch(12)
    packed = {"words": {"negatives": "all", "normalize": True}, "numbers": ["margin", "pull"]}
    options = json.dumps(packed | {"call": ["chunked", "auto", "mean", None]})
    torch.library.opcheck(
        torch.ops.maskreid_kernels.loss_with_gradient.default,
        (x.requires_grad_(), y, "ranking", options, [0.15, 2.0], "", True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def run_rank(rank: int, world: int) -> None:
    x, y = batch(16 + rank)
    module = Trained(LOSSES["ranking"], group=dist.group.WORLD)
    compiled: Any = torch.compile(module, backend="aot_eager")
    for found, expected in zip(step(compiled, x, y), step(module, x, y), strict=True):
        torch.testing.assert_close(found, expected)


def test_compiled_over_ranks(tmp_path: Path) -> None:
    run_ranks(run_rank, 2, tmp_path)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_computes_in_float32(name: str, compiled: bool) -> None:
    torch._dynamo.reset()
    x, y = batch()
    weight = torch.randn(10, 12, generator=torch.Generator().manual_seed(3), requires_grad=True)

    def under_autocast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = x @ weight
            return LOSSES[name](rows, y), rows

    function = (
        torch.compile(under_autocast, backend="aot_eager", fullgraph=True) if compiled else under_autocast
    )
    loss, rows = function(x, y)
    assert rows.dtype == torch.bfloat16 and loss.dtype == torch.float32
    expected = LOSSES[name](rows.detach().float(), y)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()
