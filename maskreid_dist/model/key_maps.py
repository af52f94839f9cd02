"""Published person networks' parameter names, as names of timm's plain models.

Written from the published code, not tried on the published files:

- `solider`: SOLIDER's Swin (github.com/tinyvision/SOLIDER-REID, model/backbones/swin_transformer.py);
- `transreid`: PersonViT (github.com/hustvl/PersonViT) and TransReID-SSL (github.com/damo-cv/TransReID-SSL),
  transreid_pytorch/model/backbones/vit_pytorch.py, also DINO's form with "backbone." before each name;
- `luperson`: ResNets of LUPerson-NL (github.com/DengpanFu/LUPerson-NL), torchvision's names after the
  encoder's own;
- `clip-reid`: CLIP-ReID's image tower (github.com/Syliz517/CLIP-ReID, model/clip/model.py, a ViT);
- `timm`: timm's own names.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Renamed = tuple[str, Tensor] | None  # None: nothing of a trunk


@dataclass(frozen=True)
class KeyMap:
    """`marks`: a name that only files of this form have. `rename`: a tensor's name and values in timm's."""

    name: str
    marks: re.Pattern[str]
    rename: Callable[[str, Tensor], Renamed]


PREFIXES = re.compile(
    r"^(module\.|backbone\.|base\.|model\.|teacher\.|student\.|encoder_q\.|encoder\.|net\.)+"
)


def _swin(name: str, tensor: Tensor) -> Renamed:
    """Merging of blocks stands at the end of a stage there, and its features are in another order."""
    if name.startswith("patch_embed."):
        return name.replace("projection", "proj"), tensor
    match = re.fullmatch(r"stages\.(\d+)\.(blocks\.\d+|downsample)\.(.+)", name)
    if match is None:
        return None
    stage, part, rest = int(match[1]), match[2], match[3]
    if part == "downsample":
        return f"layers.{stage + 1}.downsample.{rest}", _unfolded(tensor)
    rest = rest.replace("attn.w_msa.", "attn.").replace("ffn.layers.0.0.", "mlp.fc1.")
    rest = rest.replace("ffn.layers.1.", "mlp.fc2.")
    return None if rest.endswith("relative_position_index") else (f"layers.{stage}.{part}.{rest}", tensor)


def _unfolded(tensor: Tensor) -> Tensor:
    """The last axis from (channel, place) with places row by row, as `unfold` leaves a block of 2 x 2, to
    timm's (place, channel) with places column by column."""
    *before, features = tensor.shape
    places = tensor.reshape(*before, features // 4, 4).transpose(-1, -2)
    return places[..., [0, 2, 1, 3], :].reshape(*before, features)


def _vit(name: str, tensor: Tensor) -> Renamed:
    known = ("cls_token", "pos_embed", "patch_embed.proj.", "blocks.", "norm.")
    return (name, tensor) if name.startswith(known) else None


def _resnet(name: str, tensor: Tensor) -> Renamed:
    return (name, tensor) if re.match(r"(conv1|bn1|layer[1-4])\.", name) else None


CLIP_NAMES = {
    "conv1.weight": "patch_embed.proj.weight",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
}


def _clip(name: str, tensor: Tensor) -> Renamed:
    match = re.match(r"(?:image_encoder|visual)\.(.+)", name)
    if match is None:
        return None  # text, prompts, heads
    own = match[1]
    if own in CLIP_NAMES:
        return CLIP_NAMES[own], tensor if own == "conv1.weight" else tensor.reshape(1, -1, tensor.shape[-1])
    own = own.replace("transformer.resblocks.", "blocks.").replace("ln_pre.", "norm_pre.")
    own = own.replace("ln_post.", "norm.").replace(".ln_1.", ".norm1.").replace(".ln_2.", ".norm2.")
    own = own.replace("attn.in_proj_", "attn.qkv.").replace("attn.out_proj.", "attn.proj.")
    own = own.replace("mlp.c_fc.", "mlp.fc1.").replace("mlp.c_proj.", "mlp.fc2.")
    return own, tensor


def _own(name: str, tensor: Tensor) -> Renamed:
    return name, tensor


KEY_MAPS = (  # the first whose mark is found
    KeyMap("clip-reid", re.compile(r"^(image_encoder|visual)\.transformer\.resblocks\."), _clip),
    KeyMap("solider", re.compile(r"^stages\.\d+\.blocks\.\d+\.(attn\.w_msa|ffn)\."), _swin),
    KeyMap("luperson", re.compile(r"^layer1\.0\.conv1\.weight$"), _resnet),
    KeyMap("transreid", re.compile(r"^blocks\.0\.attn\.qkv\.weight$"), _vit),
    KeyMap("timm", re.compile(r""), _own),
)


def in_timms_names(there: Mapping[str, Tensor]) -> tuple[str, dict[str, tuple[str, Tensor]]]:
    """The form of a file, and its tensors by their names there: name and values in timm's form."""
    bare = {name: PREFIXES.sub("", name) for name in there}
    form = next(m for m in KEY_MAPS if any(m.marks.search(name) for name in bare.values()))
    renamed = {}
    for name, own in bare.items():
        found = form.rename(own, there[name])
        if found is not None:
            renamed[name] = found
    return form.name, renamed


def fitted(there: Tensor, here: Tensor, prefix: int, grid: tuple[int, int] | None) -> Tensor | None:
    """`there` in the shape of `here`, or None. A mask channel has no weight; positions are interpolated from
    a square grid to `grid` rows and columns, behind `prefix` tokens (class, registers) of their own."""
    if there.shape == here.shape:
        return there
    if there.ndim == 4 and there.shape[1] == 3 and here.shape == (there.shape[0], 4, *there.shape[2:]):
        return torch.cat([there, torch.zeros_like(there[:, :1])], dim=1)
    if there.ndim == 3 and here.ndim == 3 and grid and there.shape[2] == here.shape[2]:
        tokens, places = there[:, :prefix], there[:, prefix:]
        side = round(places.shape[1] ** 0.5)
        if side * side == places.shape[1]:
            square = places.reshape(1, side, side, -1).movedim(-1, 1)
            moved = torch.nn.functional.interpolate(square.float(), grid, mode="bicubic", align_corners=False)
            return torch.cat([tokens, moved.flatten(2).movedim(1, -1)], dim=1).to(here.dtype)
    return None
