"""The moving average of the weights: what it is, and a training with one, on a trunk of timm, resumed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from maskreid_dist.model.checkpoint import finished_checkpoints
from maskreid_dist.training.ema import Ema
from nodes import ROOT, run_nodes

RECIPE = f"""
name = "averaged"
[data]
shards = "{ROOT}/shards/walkers"
height = 64
width = 32
resize_height = 70
resize_width = 36
erasing = 0.5
erase_mask = true
workers = 0
[batch]
identities = 4
images = 2
[model]
backbone = "timm:resnet10t"
embedding_dim = 16
neck = "bnneck"
pooling = "gem"
last_stride = 1
[loss]
identity_weight = 1.0
label_smoothing = 0.1
[optimizer]
lr = 0.01
steps = 4
warmup_steps = 2
schedule = "constant"
ema = 0.9
[run]
log_every = 1
checkpoint_every = 2
tracker = []
"""


def test_the_average_is_that_of_the_formula_and_gives_the_weights_back() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = Ema(network, 0.5)
    expected = {name: t.detach().clone() for name, t in network.state_dict().items()}
    for step in range(12):
        network(torch.randn(8, 3))
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        ema.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, t in network.state_dict().items():
            if t.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * t
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with ema.applied(network):
        for name, t in network.state_dict().items():
            if t.is_floating_point():
                assert torch.allclose(t, expected[name], atol=1e-5), name
                assert not torch.equal(t, before[name])
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_what_the_network_holds_can_become_the_average() -> None:
    network = nn.BatchNorm1d(2)
    ema = Ema(network, 0.5)
    with ema.applied(network, keep=True):
        network.running_mean.fill_(3.0)  # type: ignore[union-attr]
    assert torch.equal(network.running_mean, torch.zeros(2))  # type: ignore[arg-type]
    with ema.applied(network):
        assert torch.equal(network.running_mean, torch.full((2,), 3.0))  # type: ignore[arg-type]


def train(recipe: Path, runs: Path, *arguments: str) -> Path:
    ranks = run_nodes([[recipe, "--runs", runs, *arguments]] * 2)
    assert [rank.status for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output
    return runs / "averaged"


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def test_a_training_goes_on_with_its_average_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    straight = train(recipe, tmp_path / "straight")
    train(recipe, tmp_path / "parts", "--set", "optimizer.steps=2")
    parts = train(recipe, tmp_path / "parts", "--resume")
    assert losses(straight) == losses(parts) and len(losses(straight)) == 4
    first, last = (
        load_file(path / "weights.safetensors") for path in finished_checkpoints(straight / "checkpoints")
    )
    again = load_file(finished_checkpoints(parts / "checkpoints")[-1] / "weights.safetensors")
    assert last.keys() == again.keys() and all(torch.equal(last[name], again[name]) for name in last)
    moved = [
        name for name in last if last[name].is_floating_point() and not torch.equal(last[name], first[name])
    ]
    assert len(moved) > 50
