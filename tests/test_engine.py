"""Learning-rate schedules, parameter groups, and what DeepSpeed is told."""

from typing import Literal

import pytest

from maskreid_dist.config import Config, DataConfig, EngineConfig, ModelConfig, OptimizerConfig
from maskreid_dist.model import MaskReID
from maskreid_dist.training.engine import deepspeed_config, learning_rate, make_optimizer


def test_staircase_is_dgds() -> None:
    config = OptimizerConfig()  # 0.1 to 5e-4 in 55,000 steps
    rates = [learning_rate(config, step) for step in range(0, 55_000, 10)]
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(5e-4)
    levels = sorted(set(rates), reverse=True)
    assert len(levels) == 20
    drops = [a - b for a, b in zip(levels, levels[1:], strict=False)]
    assert drops == pytest.approx([drops[0]] * 19)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("schedule", ["staircase", "linear", "cosine"])
def test_schedules_end_where_they_should(schedule: Literal["staircase", "linear", "cosine"]) -> None:
    config = OptimizerConfig(schedule=schedule, lr=2.0, steps=1000, warmup_steps=10, final_lr_factor=0.01)
    assert learning_rate(config, 0) == pytest.approx(0.2, rel=0.02)
    assert learning_rate(config, 9) == pytest.approx(2.0, rel=0.02)
    assert learning_rate(config, 999) == pytest.approx(0.02, rel=0.15)
    assert learning_rate(config, 5000) == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_spares_biases_and_normalisation(name: Literal["sgd", "adamw"]) -> None:
    network = MaskReID(ModelConfig(width=0.125), classes=3)
    optimizer = make_optimizer(network, OptimizerConfig(name=name, weight_decay=0.01))
    decayed, spared = (set(map(id, group["params"])) for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    for parameter_name, parameter in network.named_parameters():
        is_weight = parameter.ndim > 1
        assert (id(parameter) in decayed) == is_weight, parameter_name
        assert (id(parameter) in spared) != is_weight, parameter_name


def test_deepspeed_is_told_everything_that_matters() -> None:
    config = Config(
        name="t", data=DataConfig(shards="s"), engine=EngineConfig(zero_stage=1, autocast="bfloat16")
    )
    settings = deepspeed_config(config, 32, 4)
    assert settings["train_batch_size"] == 128
    assert settings["gradient_clipping"] == 0.0  # unset would clip at 1.0
    assert settings["zero_optimization"]["stage"] == 1
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert settings["checkpoint"]["tag_validation"] == "Fail"
    assert "auto" not in settings.values()
