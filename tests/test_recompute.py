"""engine.activation_checkpointing and ZeRO 3: the same step in less memory; recipes that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from maskreid_dist.config import EngineConfig, ModelConfig
from maskreid_dist.errors import RecipeError
from maskreid_dist.model import MaskReID
from maskreid_dist.training.engine import zero_settings
from maskreid_dist.training.replicas import largest_value, weights_digest
from test_gradient_cache import SavedForBackward, global_batch, recipe
from test_train import RECIPE, losses, train


def one_step(recompute: bool, training: bool = True) -> tuple[MaskReID, Tensor, int]:
    """The network after a backward pass, its embeddings, and the bytes that were held for it at the peak."""
    torch.manual_seed(0)
    network = MaskReID(ModelConfig(width=0.125, embedding_dim=16), recompute=recompute).train(training)
    batch, saved = global_batch(0), SavedForBackward()
    with saved_tensors_hooks(saved.pack, lambda box: box[0]):
        output = network(batch.image_B3HW, batch.mask_B1HW)
        held = saved.held
        (output.embedding_BD * torch.linspace(-1, 1, 16)).sum().backward()
    return network, output.embedding_BD, held


@pytest.mark.parametrize("training", [True, False])
def test_recomputed_activations_are_the_same_step(training: bool) -> None:
    """Gradients and running statistics, to the bit, and a fraction of what is held between the passes."""
    (plain, rows, held), (again, rows_again, held_again) = (one_step(r, training) for r in (False, True))
    assert torch.equal(rows, rows_again)
    for (name, value), other in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    for one, two in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None and torch.equal(one.grad, two.grad)
    assert int(again.fusing.bn.num_batches_tracked) == int(training)  # type: ignore[arg-type]
    assert held_again < held / 5, (held_again, held)


def test_the_padding_of_a_part_says_nothing() -> None:
    """Under ZeRO 3 a rank's part of 5 values over 2 ranks is 3 wide, and its last may be anything."""
    module = nn.Linear(1, 1, bias=False)
    part: Any = module.weight
    part.ds_tensor, part.ds_numel = torch.tensor([1.0, -4.0, torch.nan]), 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "get_rank", lambda: 0)
        assert float(largest_value(module)) == 4
        part.ds_numel = 3
        assert largest_value(module).isnan()
    assert int(weights_digest(module)) == 0


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"offload": "optimizer"}, "use engine.zero_stage = 1 or more"),
        ({"offload": "all", "zero_stage": 2}, "use engine.zero_stage = 3 or more"),
        ({"zero_stage": 4}, "engine.zero_stage"),
    ],
)
def test_recipes_that_ask_for_what_a_stage_has_not(engine: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(engine=engine)


def test_what_deepspeed_is_told_of_zero() -> None:
    assert zero_settings(EngineConfig(zero_stage=3)) == {"stage": 3}
    told = zero_settings(EngineConfig(zero_stage=3, offload="all"))
    assert told["offload_optimizer"]["device"] == told["offload_param"]["device"] == "cpu"
    assert "offload_param" not in zero_settings(EngineConfig(zero_stage=2, offload="optimizer"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has SyncBatchNorm")
def test_sync_batchnorm_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    recipe_file = tmp_path / "tiny.toml"
    recipe_file.write_text(RECIPE)
    output = train("one", recipe_file, tmp_path, "--set", "engine.sync_batchnorm=true", status=2)
    assert "engine.sync_batchnorm: torch has it on GPUs alone" in output and "Traceback" not in output


@pytest.mark.faults
def test_a_run_under_zero_3_is_saved_resumed_and_the_same(tmp_path: Path) -> None:
    """Losses as without ZeRO, weights in whole in every checkpoint, and a resumed run as one that went on."""
    recipe_file = tmp_path / "tiny.toml"
    recipe_file.write_text(RECIPE.replace("linear", "constant").replace("steps = 6", "steps = 4"))
    stage_3 = ("--set", "engine.zero_stage=3", "--set", "engine.activation_checkpointing=true")
    train("two", recipe_file, tmp_path / "plain")
    train("two", recipe_file, tmp_path / "three", *stage_3)
    train("two", recipe_file, tmp_path / "resumed", *stage_3, "--set", "optimizer.steps=3")
    train("two", recipe_file, tmp_path / "resumed", *stage_3, "--resume")
    plain, three, resumed = (tmp_path / name / "tiny" for name in ("plain", "three", "resumed"))
    assert list(losses(three).values()) == pytest.approx(list(losses(plain).values()), rel=1e-4)
    assert losses(resumed) == losses(three)
    states = [
        load_file(run / "checkpoints" / "step_00000004" / "weights.safetensors") for run in (plain, three)
    ]
    for name, value in states[0].items():
        assert torch.allclose(states[1][name], value, atol=1e-3), name
