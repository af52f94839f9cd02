"""model.init = "pretrained:timm": what timm publishes of the trunk, by a stand-in for the network."""

from pathlib import Path
from typing import Any

import pytest
import torch

from maskreid_dist.errors import CheckpointError
from maskreid_dist.model import build_network
from maskreid_dist.model.initial import check_initial, take_initial_weights
from test_backbones import RESNET, VIT, config

timm = pytest.importorskip("timm")
PUBLISHED = Path("pretrained:timm")


@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_the_trunk_starts_with_them_in_every_stream(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(config(backbone=backbone), 0)
    own, made = timm.create_model, []

    def create_model(name: str, *, pretrained: bool) -> Any:
        assert pretrained and name == backbone.removeprefix("timm:")
        made.append(own(name))
        return made[0]

    monkeypatch.setattr(timm, "create_model", create_model)
    before = torch.get_rng_state()
    taken = take_initial_weights(network, PUBLISHED)
    assert torch.equal(before, torch.get_rng_state())
    there, here = made[0].state_dict(), network.state_dict()
    if backbone == RESNET:
        stem, copy, body = "conv1.0.weight", "trunk.stems.copies.{}.conv1.0.weight", "layer1.0.conv1.weight"
    else:
        stem, copy = "patch_embed.proj.weight", "trunk.body.patch_embed.proj.copies.{}.weight"
        body = "blocks.0.attn.qkv.weight"
    assert all(torch.equal(here[copy.format(number)], there[stem]) for number in (0, 1))
    assert torch.equal(here[f"trunk.body.{body}"], there[body])
    name = backbone.removeprefix("timm:")
    assert taken.file == f"timm: {timm.get_pretrained_cfg(name).hf_hub_id}" and taken.form != "own"


def test_what_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError) as caught:
        take_initial_weights(build_network(config(backbone=RESNET), 0), PUBLISHED)
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path / "hub") in said and "timm/resnet10t" in said
    assert "create_model" in said and "pretrained=True" in said
    with pytest.raises(CheckpointError, match="timm publishes no weights of resnetv2_50t"):
        take_initial_weights(build_network(config(backbone="timm:resnetv2_50t"), 0), PUBLISHED)


def test_it_needs_a_trunk_of_timm() -> None:
    check_initial(config(backbone=RESNET, init=str(PUBLISHED)).model)
    with pytest.raises(CheckpointError, match="needs a trunk of timm"):
        check_initial(config(init=str(PUBLISHED)).model)
    with pytest.raises(CheckpointError, match="no such file"):
        check_initial(config(init="nowhere.safetensors").model)
