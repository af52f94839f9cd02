"""The losses as nn.Module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maskreid_kernels as kernels

MODULES = {
    "ranking": kernels.RankingLoss,
    "batch_hard": kernels.BatchHardLoss,
    "n_pair": kernels.NPairLoss,
    "all_pairs": kernels.AllPairsLoss,
    "circle": kernels.CircleLoss,
    "supervised_contrastive": kernels.SupervisedContrastiveLoss,
    "softmax": kernels.SoftmaxLoss,
}
LEARNED = [("n_pair", "scale"), ("all_pairs", "scale"), ("supervised_contrastive", "temperature")]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 3


def test_every_loss_has_a_module() -> None:
    assert set(MODULES) == set(kernels.LOSSES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_its_function(name: str) -> None:
    x, y = batch()
    key, default = next(iter(kernels.constants(name).items()))
    for options in ({}, {key: default / 2}):
        module = MODULES[name](**options)
        assert torch.equal(module(x, y), kernels.LOSSES[name](x, y, **options))
        assert not module.state_dict() and not list(module.parameters())
    assert f"{key}={default / 2}" in repr(module)
    with pytest.raises(TypeError, match="no option marge; options: "):
        MODULES[name](marge=0.3)


@pytest.mark.parametrize(("name", "key"), LEARNED)
def test_a_learned_number_is_a_parameter(name: str, key: str) -> None:
    x, y = batch()
    module = MODULES[name](learnable=True, **{key: 0.5})
    assert f"{key}=0.5 (learned)" in repr(module)
    torch.testing.assert_close(module(x, y), kernels.LOSSES[name](x, y, **{key: 0.5}))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = float(module(x, y))
    for _ in range(5):
        optimizer.zero_grad()
        module(x, y).backward()
        optimizer.step()
    assert float(module(x, y)) < before
    copy = MODULES[name](learnable=True)
    copy.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == [f"log_{key}"] and torch.equal(copy(x, y), module(x, y))
    with pytest.raises(ValueError, match=f"{key}: expected a finite number above 0"):
        MODULES[name](learnable=True, **{key: -1.0})
