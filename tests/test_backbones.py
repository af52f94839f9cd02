"""Trunks of timm in place of the paper's, and what every trunk may have: levels, pooling, neck, stride, mask
channel."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskreid_dist.config import Config, ModelConfig
from maskreid_dist.errors import UserError
from maskreid_dist.model import MaskReID, build_network
from maskreid_dist.model.build import check_backbone
from maskreid_dist.model.fusing import Stripes
from maskreid_dist.model.instance_norm import InstanceBatchNorm
from maskreid_dist.planning.network_cost import network_cost

SIZE = (64, 32)
RESNET, CONVNEXT, VIT = "timm:resnet10t", "timm:convnext_atto", "timm:vit_tiny_patch16_224"
SWIN = "timm:swin_tiny_patch4_window7_224"
DINO = {  # with a size of whole patches
    "timm:vit_small_patch14_dinov2": (56, 28),
    "timm:vit_small_patch14_reg4_dinov2": (56, 28),
    "timm:vit_small_patch16_dinov3": SIZE,
    "timm:convnext_tiny.dinov3_lvd1689m": SIZE,
}


def config(size: tuple[int, int] = SIZE, **model: Any) -> Config:
    data = {"shards": "-", "height": size[0], "width": size[1]}
    return Config.model_validate({"name": "t", "data": data, "model": {"embedding_dim": 16, **model}})


def pair(batch: int, size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (batch, 1, *size), dtype=torch.uint8, generator=generator) * 255
    return image, mask


CASES: list[tuple[dict[str, Any], int]] = [  # what the fusing layer sees
    ({"backbone": RESNET}, 128 + 256 + 512),
    ({"backbone": RESNET, "levels": [0, 2, -1], "mask_input": "channel"}, 64 + 128 + 512),
    ({"backbone": RESNET, "last_stride": 1, "pooling": "gem", "neck": "bnneck"}, 128 + 256 + 512),
    ({"backbone": RESNET, "ibn": True}, 128 + 256 + 512),
    ({"backbone": RESNET, "fusing": "conv", "fusing_rows": 2}, 2 * (256 + 256 + 512)),
    ({"backbone": CONVNEXT, "fusing": "none"}, 320),
    ({"backbone": VIT, "levels": [3, 7, 11]}, 3 * 192),
    ({"backbone": VIT, "mask_input": "channel"}, 3 * 192),
    ({"backbone": SWIN, "levels": [0, 1]}, 96 + 192),
    ({"backbone": "inception", "width": 0.125, "mask_input": "channel"}, 48 + 96 + 192),
    ({"backbone": "inception", "width": 0.125, "levels": [0, 2], "neck": "bnneck"}, 48 + 192),
]


@pytest.mark.parametrize(("model", "features"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_every_weight_learns_in_both_streams(model: dict[str, Any], features: int) -> None:
    if model["backbone"].startswith("timm:"):
        pytest.importorskip("timm")
    recipe = config(**model)
    network = build_network(recipe, 5)
    assert network.fusing.fc.in_features == features
    output = network(*pair(3))
    assert output.embedding_BD.shape == (3, 16) and output.logits_BC.shape == (3, 5)
    assert torch.allclose(output.embedding_BD.norm(dim=1), torch.ones(3), atol=1e-5)
    (output.embedding_BD[:, 0].sum() + output.logits_BC[:, 0].sum()).backward()
    still = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not still
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == (
        ["fusing.bn.bias"] if model.get("neck") == "bnneck" else []
    )
    assert network_cost(recipe, 5).parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("backbone", DINO)
def test_trunks_of_dino_give_an_embedding(backbone: str) -> None:
    pytest.importorskip("timm")
    size = DINO[backbone]
    network = build_network(config(size, backbone=backbone), 0).eval()
    with torch.no_grad():
        found = network(*pair(2, size)).embedding_BD
    assert found.shape == (2, 16) and torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_streams_start_as_the_trunk_with_one_stem(backbone: str) -> None:
    """Where both see the same image: a mask of everything."""
    pytest.importorskip("timm")
    both = build_network(config(backbone=backbone), 0).eval()
    single = build_network(config(backbone=backbone, streams=["raw"]), 0).eval()
    there = both.state_dict()
    single.load_state_dict({name: there[name] for name in single.state_dict()})
    image, mask = pair(2)
    with torch.no_grad():
        everyone = torch.full_like(mask, 255)
        expected = single(image, everyone).embedding_BD
        assert torch.allclose(both(image, everyone).embedding_BD, expected, atol=1e-5)
        assert not torch.allclose(both(image, mask).embedding_BD, expected, atol=1e-3)


@pytest.mark.parametrize("backbone", [RESNET, VIT, "inception"])
def test_a_mask_channel_matters_once_it_has_weight(backbone: str) -> None:
    """timm's trunks start blind to it, as one of three channels would; gradients reach it."""
    if backbone != "inception":
        pytest.importorskip("timm")
    network = build_network(config(backbone=backbone, mask_input="channel", pooling="gem"), 0).eval()
    image, mask = pair(2)
    before, other = network(image, mask).embedding_BD, network(image, 255 - mask).embedding_BD
    assert torch.equal(before, other) == (backbone != "inception")
    before[:, 0].sum().backward()
    first = next(part for part in network.modules() if isinstance(part, torch.nn.Conv2d))
    assert first.weight.grad is not None and first.weight.grad[:, 3].abs().max() > 0


def test_the_last_stride_of_the_papers_trunk_and_of_resnet() -> None:
    pytest.importorskip("timm")
    for backbone in ("inception", RESNET):
        shapes = []
        for stride in (2, 1):
            network = build_network(config(backbone=backbone, last_stride=stride), 0).eval()
            with torch.no_grad():
                shapes.append([tuple(level.shape[2:]) for level in network.fused_levels(*pair(1))])
        assert shapes[0][:-1] == shapes[1][:-1]
        assert shapes[1][-1] == shapes[1][-2] and shapes[1][-1][0] == 2 * shapes[0][-1][0]


def test_instance_and_batch_normalisation_side_by_side() -> None:
    """In each block of the first three stages, and there half the channels each: by an image's own statistics
    and by the batch's."""
    pytest.importorskip("timm")
    network = build_network(config(backbone=RESNET, ibn=True), 0)
    norms = {n: part for n, part in network.named_modules() if isinstance(part, InstanceBatchNorm)}
    assert list(norms) == [f"trunk.body.layer{stage}.0.bn1" for stage in (1, 2, 3)]
    norm, x = norms["trunk.body.layer3.0.bn1"], 3 * torch.randn(4, 256, 5, 3) + 1
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
        by_image, by_batch = norm(x).chunk(2, dim=1)
        scale, shift = torch.cat([norm.IN.weight, norm.BN.weight]), torch.cat([norm.IN.bias, norm.BN.bias])
    for found, own, axes in ((by_image, slice(0, 128), (2, 3)), (by_batch, slice(128, 256), (0, 2, 3))):
        part = x[:, own]
        variance = part.var(axes, correction=0, keepdim=True)
        expected = (part - part.mean(axes, keepdim=True)) / (variance + 1e-5).sqrt()
        expected = expected * scale[own, None, None] + shift[own, None, None]
        assert torch.allclose(found, expected, atol=1e-4)


def test_gem_is_the_mean_at_power_1_and_nears_the_maximum() -> None:
    x = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    gem = Stripes(2, "gem")
    assert gem.power is not None
    assert torch.allclose(gem(x)[0, 0], x[0, 0, :3].pow(3).mean().pow(1 / 3))
    gem.power.data.fill_(1.0)
    assert torch.allclose(gem(x), Stripes(2, "mean")(x), atol=1e-6)
    gem.power.data.fill_(60.0)
    assert torch.allclose(gem(x), F.adaptive_max_pool2d(x, (2, 1)).flatten(1), atol=0.06)


def test_the_neck_gives_the_pair_losses_what_lies_before_it() -> None:
    network = MaskReID(ModelConfig(width=0.125, embedding_dim=16, neck="bnneck"), 4)
    assert network.fusing.bn.running_mean is not None and network.classifier is not None
    network.fusing.bn.running_mean.fill_(0.5)
    image, mask = pair(6)
    feature, _ = network.fusing(network.fused_levels(image, mask))
    assert torch.allclose(network(image, mask).embedding_BD, F.normalize(feature, dim=1), atol=1e-5)
    network.eval()
    with torch.no_grad():
        _, fused = network.fusing(network.fused_levels(image, mask))
        output = network(image, mask)
    assert torch.allclose(output.embedding_BD, F.normalize(fused, dim=1), atol=1e-5)
    assert torch.allclose(output.logits_BC, network.classifier(fused), atol=1e-5)
    assert torch.equal(network.fusing.bn.bias, torch.zeros(16))


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        ({"backbone": "timm:resnet9000"}, SIZE, "no such model"),
        ({"backbone": RESNET, "levels": [9]}, SIZE, "choose other model.levels"),
        ({"backbone": CONVNEXT, "last_stride": 1}, SIZE, "leave model.last_stride out"),
        ({"backbone": VIT, "last_stride": 1}, SIZE, "leave model.last_stride out"),
        ({"backbone": CONVNEXT, "ibn": True}, SIZE, "leave model.ibn out"),
        ({"backbone": VIT, "ibn": True}, SIZE, "leave model.ibn out"),
        ({"backbone": VIT}, (72, 28), "no whole 16x16 patches"),
        ({"backbone": "timm:mobilenetv3_small_050"}, SIZE, "use another backbone"),
    ],
)
def test_what_a_trunk_cannot_is_said_before_it_is_built(
    model: dict[str, Any], size: tuple[int, int], words: str
) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=words) as caught:
        check_backbone(config(size, **model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"backbone": "resnet50"}}, "pattern"),
        ({"model": {"backbone": RESNET, "width": 0.5}}, "width is of the paper's trunk"),
        ({"model": {"ibn": True}}, "ibn is of a ResNet of timm"),
        ({"model": {"levels": [0, 1]}}, "ends with level 2"),
        ({"model": {"levels": [2, -1]}}, "name each once"),
        ({"model": {"levels": [3]}}, "levels 0, 1 and 2"),
        ({"model": {"levels": []}}, "at least 1"),
        ({"model": {"mask_input": "channel", "streams": ["raw", "masked"]}}, "raw stream alone"),
        ({"model": {"last_stride": 3}}, "less than or equal to 2"),
        ({"loss": {"label_smoothing": 0.1}}, "softmax"),
        ({"optimizer": {"ema": 0.99}, "engine": {"zero_stage": 3}}, "zero_stage 0 to 2"),
        ({"optimizer": {"ema": 1.0}}, "less than 1"),
    ],
)
def test_recipes_that_cannot_be(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config.model_validate({"name": "t", "data": {"shards": "-"}, **sections})


@pytest.mark.parametrize("backbone", [RESNET, VIT, SWIN, "inception"])
def test_maps_to_look_at_are_of_the_streams_and_of_the_first_and_last_level(backbone: str) -> None:
    if backbone != "inception":
        pytest.importorskip("timm")
    network = build_network(config(backbone=backbone, levels=[0, 1, -1]), 0).eval()
    image, mask = pair(2)
    with torch.no_grad():
        maps, other = network.shown_maps(image, mask), network.shown_maps(image, 255 - mask)
    assert list(maps) == ["raw", "masked", "low", "high"]
    assert torch.equal(maps["raw"], other["raw"]) and not torch.equal(maps["masked"], other["masked"])
    rows = [level.shape[2] for level in maps.values()]
    assert all(level.ndim == 4 for level in maps.values()) and rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_recomputation_gives_the_same_gradients(backbone: str) -> None:
    pytest.importorskip("timm")
    found = []
    for recompute in (False, True):
        torch.manual_seed(1)
        recipe = config(backbone=backbone)
        engine = recipe.engine.model_copy(update={"activation_checkpointing": recompute})
        network = build_network(recipe.model_copy(update={"engine": engine}), 0)
        network(*pair(3)).embedding_BD[:, 0].sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        found.append((gradients, dict(network.named_buffers())))
    for plain, again in zip(*found, strict=True):
        assert all(torch.equal(plain[name], again[name]) for name in plain)
