"""Files in the form of published person networks, made here, into trunks of timm. The published files
themselves were not tried."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskreid_dist.config import Config
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model import build_network
from maskreid_dist.model.initial import take_initial_weights
from maskreid_dist.model.key_maps import in_timms_names

timm = pytest.importorskip("timm")
SIZE = (64, 32)
SWIN, VIT, RESNET = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "resnet50"
CLIP = "vit_base_patch16_clip_quickgelu_224"


def network(backbone: str, **model: Any) -> nn.Module:
    data = {"shards": "-", "height": SIZE[0], "width": SIZE[1]}
    tree = {"name": "t", "data": data, "model": {"backbone": f"timm:{backbone}", "embedding_dim": 8, **model}}
    return build_network(Config.model_validate(tree), 0)


def plain(backbone: str) -> dict[str, Tensor]:
    """timm's whole model, every tensor random."""
    size = {} if backbone == RESNET else {"img_size": SIZE}
    state: dict[str, Tensor] = timm.create_model(backbone, num_classes=0, **size).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in state.items()
    }


def to_solider(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, t in state.items():
        new = name.replace("layers.", "stages.", 1).replace("patch_embed.proj", "patch_embed.projection")
        new = new.replace(".attn.", ".attn.w_msa.").replace("mlp.fc1", "ffn.layers.0.0")
        new = new.replace("mlp.fc2", "ffn.layers.1")
        if "downsample" in new:
            stage = int(new.split(".")[1])
            new = new.replace(f"stages.{stage}.", f"stages.{stage - 1}.")
            t = t.reshape(*t.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        found[f"module.backbone.{new}"] = t
    return {**found, "module.head.mlp.0.weight": torch.ones(3, 3)}


def to_clip_reid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "patch_embed.proj": "conv1",
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "norm_pre": "ln_pre",
        "blocks.": "transformer.resblocks.",
        ".norm1": ".ln_1",
        ".norm2": ".ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    found = {}
    for name, t in state.items():
        new = "ln_post" + name.removeprefix("norm") if name.startswith("norm.") else name
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        found[f"image_encoder.{new}"] = t.squeeze() if new.endswith("embedding") else t
    return {**found, "text_encoder.ln_final.weight": torch.ones(2), "prompt_learner.cls_ctx": torch.ones(2)}


def to_transreid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.backbone.{name}": t for name, t in state.items()} | {"module.head.w": torch.ones(1)}


def to_luperson(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {f"module.encoder_q.{name}": t for name, t in state.items()}
    return {**found, "module.encoder_q.fc.weight": torch.ones(2, 2), "module.queue": torch.ones(2, 2)}


FORMS: list[tuple[str, str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = [
    ("solider", SWIN, to_solider),
    ("transreid", VIT, to_transreid),
    ("luperson", RESNET, to_luperson),
    ("clip-reid", CLIP, to_clip_reid),
    ("transreid", VIT, lambda state: state),  # timm's own names of a ViT
    ("timm", SWIN, lambda state: state),
]


@pytest.mark.parametrize(("form", "backbone", "published"), FORMS, ids=lambda value: str(value)[:12])
def test_a_file_of_each_form_gives_every_weight_of_the_trunk(
    form: str, backbone: str, published: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    state = plain(backbone)
    file = tmp_path / "published.safetensors"
    save_file({name: t.contiguous() for name, t in published(state).items()}, file)
    into: Any = network(backbone)
    taken = take_initial_weights(into, file)
    assert taken.form == form and form in " ".join(taken.lines()) and not taken.other_shape
    missing = [n for n in taken.not_there if not n.startswith("fusing.") and not n.endswith(".merge")]
    assert not missing
    trunk = into.trunk.state_dict()
    expected = {place: t for name, t in state.items() for place in into.trunk.places(name)}
    assert len(expected) > 40
    assert all(torch.equal(trunk[place], t) for place, t in expected.items())


def test_a_file_of_the_ibn_form_gives_every_weight_of_it(tmp_path: Path) -> None:
    """`layer1.0.bn1.IN.weight`, `layer1.0.bn1.BN.running_mean` (github.com/XingangPan/IBN-Net)."""
    whole = {}
    for name, t in plain(RESNET).items():
        found = re.fullmatch(r"(layer[123]\.\d+\.bn1)\.(\w+)", name)
        if not found:
            whole[name] = t
        elif found[2] == "num_batches_tracked":
            whole[f"{found[1]}.BN.{found[2]}"] = t
        else:
            first, second = t.clone().chunk(2)
            whole[f"{found[1]}.BN.{found[2]}"] = second
            if found[2] in ("weight", "bias"):
                whole[f"{found[1]}.IN.{found[2]}"] = first
    file = tmp_path / "resnet50_ibn_a.safetensors"
    save_file({name: t.contiguous() for name, t in whole.items()}, file)
    into: Any = network(RESNET, ibn=True)
    taken = take_initial_weights(into, file)
    missing = [n for n in taken.not_there if not n.startswith("fusing.") and not n.endswith(".merge")]
    assert not missing and not taken.other_shape
    trunk = into.trunk.state_dict()
    expected = {place: t for name, t in whole.items() for place in into.trunk.places(name)}
    assert sum(".IN." in name for name in expected) >= 26 and len(expected) > 300
    assert all(torch.equal(trunk[place], t) for place, t in expected.items())


def test_solider_merges_the_features_of_a_block_in_the_order_of_unfold() -> None:
    """As its PatchMerging does (mmcv's): unfold, norm, reduction."""
    merge = timm.models.swin_transformer.PatchMerging(4)
    x = torch.randn(1, 4, 6, 4)
    norm, reduction = torch.randn(16), torch.randn(8, 16)
    columns = nn.functional.unfold(x.movedim(-1, 1), 2, stride=2).transpose(1, 2)
    theirs = (nn.functional.layer_norm(columns, (16,)) * norm) @ reduction.T
    names = {"norm.weight": norm, "reduction.weight": reduction, "norm.bias": torch.zeros(16)}
    file = {f"stages.0.downsample.{name}": t for name, t in names.items()}
    form, renamed = in_timms_names({**file, "stages.0.blocks.0.ffn.layers.1.weight": torch.ones(1)})
    assert form == "solider"
    own = {n.removeprefix("layers.1.downsample."): t for n, t in renamed.values() if "downsample" in n}
    merge.load_state_dict(own)
    assert torch.allclose(merge(x).flatten(1, 2), theirs, atol=1e-4)


def test_positions_of_a_square_are_interpolated_and_a_mask_channel_has_no_weight(tmp_path: Path) -> None:
    state = plain(VIT)
    square = torch.arange(14.0).view(1, 14, 1, 1).expand(1, 14, 14, 192).reshape(1, 196, 192)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 192), -5.0), square], dim=1)
    torch.save({"epoch": 3, "teacher": to_transreid(state)}, tmp_path / "dino.pth")
    into: Any = network(VIT, mask_input="channel")
    taken = take_initial_weights(into, tmp_path / "dino.pth")
    assert not taken.other_shape
    positions = into.trunk.body.pos_embed
    assert torch.equal(positions[0, 0], torch.full((192,), -5.0))
    rows = positions[0, 1:].view(4, 2, 192)
    assert torch.all(rows[1:] > rows[:-1]) and torch.allclose(rows[:, 0], rows[:, 1])
    weight = into.trunk.body.patch_embed.proj.copies[0].weight
    assert torch.equal(weight[:, :3], state["patch_embed.proj.weight"]) and not weight[:, 3].any()


def test_what_no_map_knows_and_code_in_a_file_are_refused(tmp_path: Path) -> None:
    save_file({"something.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    torch.save({"state_dict": Path("a")}, tmp_path / "code.pth")
    for name, words in (("other.safetensors", "none of its tensors"), ("code.pth", "not a safetensors file")):
        with pytest.raises(CheckpointError, match=words):
            take_initial_weights(network("resnet10t"), tmp_path / name)
