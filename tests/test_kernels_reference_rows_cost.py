"""What candidates that are not the batch (`reference=`) may cost: products and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import maskreid_kernels as kernels
from maskreid_kernels import blocks
from reference_rows import BACKENDS, PAIR_LOSSES, rows_of


class Products(TorchDispatchMode):
    """Multiplications of all matrix products."""

    multiplications = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            a, b = [one for one in arguments if isinstance(one, Tensor)][-2:]
            self.multiplications += a.numel() * b.shape[-1]
        return function(*arguments, **(keywords or {}))


def products(name: str, wanted: tuple[bool, bool], backend: str) -> float:
    """Those of a step, each of all anchors with all references."""
    x, y, r, z = rows_of(24, 30, 8), torch.arange(24) % 6, rows_of(40, 31, 8), torch.arange(40) % 6
    leaves = [one.requires_grad_(w) for one, w in zip((x, r), wanted, strict=True)]
    with Products() as counter:
        kernels.LOSSES[name](leaves[0], y, reference=(leaves[1], z), backend=backend).backward()
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)
    return float(counter.multiplications / (24 * 40 * 8))


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_references_without_a_gradient_cost_none(backend: str, name: str) -> None:
    """One product in the forward; in the backward one for each gradient, and one for S again in blocks."""
    again = {"reference": 1, "chunked": 2}[backend]
    mined = name == "batch_hard"  # no product in its backward
    assert products(name, (True, False), backend) == (1 if mined else again + 1)
    assert products(name, (False, True), backend) == (1 if mined else again + 1)
    assert products(name, (True, True), backend) == (1 if mined else again + 2)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operator made."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_no_matrix_of_all_anchors_and_references(name: str) -> None:
    x, r = rows_of(200, 32, 4).float().requires_grad_(), rows_of(100_000, 33, 4).float()
    y, z = torch.arange(200) % 50, torch.arange(100_000) % 5000
    with Largest() as largest:
        kernels.LOSSES[name](x, y, reference=(r, z)).backward()
    assert x.grad is not None and x.grad.any()
    assert largest.found <= blocks.WORKSPACE_BYTES < 200 * 100_000 * 4
