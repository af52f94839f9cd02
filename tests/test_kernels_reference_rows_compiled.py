"""Candidates that are not the batch (`reference=`) under torch.compile, where a loss is one operator."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import maskreid_kernels as kernels
from reference_rows import SITUATIONS


@pytest.mark.parametrize("name", ["ranking", "batch_hard", "circle"])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    x, y, r, z = (one.float() if one.is_floating_point() else one for one in SITUATIONS["ragged"])

    def loss(rows: Tensor, references: Tensor) -> Tensor:
        return 2 * kernels.LOSSES[name](rows, y, reference=(references, z))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for wanted in [(True, True), (True, False), (False, True)]:
        steps = []
        for function in (loss, compiled):
            leaves = [one.clone().requires_grad_(w) for one, w in zip((x, r), wanted, strict=True)]
            value = function(*leaves)
            value.backward()
            steps.append([value.detach(), *(leaf.grad for leaf in leaves)])
        assert [one is None for one in steps[1]] == [False, *(not w for w in wanted)]
        for found, expected in zip(*steps, strict=True):
            if found is not None:
                torch.testing.assert_close(found, expected)


def test_compiled_has_no_second_derivative() -> None:
    torch._dynamo.reset()
    x, y, r, z = SITUATIONS["ragged"]
    rows = x.clone().requires_grad_()
    compiled = torch.compile(kernels.n_pair_loss, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"second derivative|double backward|create_graph"):
        (of_rows,) = torch.autograd.grad(compiled(rows, y, reference=(r, z)), rows, create_graph=True)
        of_rows.square().sum().backward()


def test_compiled_with_the_rows_themselves_and_what_is_refused() -> None:
    torch._dynamo.reset()
    x, y, r, z = SITUATIONS["ragged"]
    compiled = torch.compile(kernels.n_pair_loss, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (compiled, kernels.n_pair_loss):
        both = x.clone().requires_grad_()
        function(both, y, reference=(both, y)).backward()
        gradients.append(both.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="backend 'dense' takes no reference="):
        compiled(x, y, reference=(r, z), backend="dense")
    with pytest.raises(ValueError, match=r"reference\[0\]: expected a 2-d float tensor"):
        compiled(x, y, reference=(r.long(), z))


@pytest.mark.parametrize("situation", ["no_references", "no_rows", "no_positives"])
def test_compiled_without_an_anchor(situation: str) -> None:
    torch._dynamo.reset()
    x, y, r, z = (one.clone() for one in SITUATIONS[situation])
    compiled = torch.compile(kernels.ranking_loss, backend="aot_eager", fullgraph=True)
    loss = compiled(x.requires_grad_(), y, reference=(r.requires_grad_(), z))
    loss.backward()
    assert float(loss) == 0
    for rows in (x, r):
        assert rows.grad is not None and rows.grad.shape == rows.shape and not rows.grad.any()


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    x, y, r, z = SITUATIONS["ragged"]
    packed = {"words": {"negatives": "all", "normalize": True}, "numbers": ["margin", "pull"]}
    options = json.dumps(packed | {"call": ["chunked", "auto", "mean", None]})
    rows = (x.clone().requires_grad_(), y, r.clone().requires_grad_(), z)
    torch.library.opcheck(
        torch.ops.maskreid_kernels.crossed_loss_with_gradient.default,
        (*rows, "ranking", options, [0.15, 2.0], "", True, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_compiled_with_options() -> None:
    torch._dynamo.reset()
    x, y, r, z = SITUATIONS["ragged"]
    r = r.float()
    value = torch.tensor(0.3, requires_grad=True)

    def loss(x: Tensor, r: Tensor) -> Tensor:
        call: dict[str, Any] = {"reference": (r, z), "ignore_index": 2, "reduction": "sum"}
        statistics = kernels.ranking_loss_with_statistics(x, y, **call)[1]
        learned = kernels.supervised_contrastive_loss(x, y, temperature=value, **call)
        return kernels.batch_hard_loss(x, y, **call) + learned + statistics.floor

    steps = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        value.grad = None
        leaves = [one.clone().requires_grad_() for one in (x, r)]
        found = function(*leaves)
        found.backward()
        steps.append([found.detach(), *(leaf.grad for leaf in leaves), value.grad])
    for own, right in zip(*steps, strict=True):
        torch.testing.assert_close(own, right)
