"""The network with a trunk of the package timm (https://github.com/huggingface/pytorch-image-models)."""

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskreid_dist.config import TIMM, ModelConfig
from maskreid_dist.errors import UserError
from maskreid_dist.model.instance_norm import mix_norms
from maskreid_dist.model.network import ReIDNetwork, make_stream
from maskreid_dist.model.recompute import recomputed

STEMS, BODY = "stems", "body"


class StreamStems(nn.Module):
    """A stem for each stream, and a 1x1 projection of their concatenated outputs back to its channels.

    The copies start alike, the projection as their mean: streams that see the same image start as the trunk
    with one stem would. The input is that of the streams, one after the other: (B, S * C, H, W).
    """

    def __init__(self, stem: nn.Module, streams: int, inputs: int, *, rows_last: bool = False) -> None:
        super().__init__()
        self.copies = nn.ModuleList([stem, *(deepcopy(stem) for _ in range(streams - 1))])
        self.inputs = inputs
        self.rows_last = rows_last
        self.merge: nn.Parameter | None = None
        if streams > 1:
            channels = _last_norm_or_convolution(stem)
            self.merge = nn.Parameter(torch.cat([torch.eye(channels) / streams] * streams, dim=1))

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Each stem's own."""
        parts = x.split(self.inputs, dim=1)
        return [stem(part) for stem, part in zip(self.copies, parts, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.outputs(x)
        if self.merge is None:
            return outputs[0]
        if self.rows_last:  # (B, H, W, C)
            return nn.functional.linear(torch.cat(outputs, dim=-1), self.merge)
        return nn.functional.conv2d(torch.cat(outputs, dim=1), self.merge[:, :, None, None])


class TimmTrunk(nn.Module):
    """Feature maps of chosen levels, (B, C, H, W) each, of (B, S * C, H, W) inputs of S streams.

    `channels`: of the levels. `mean`, `deviation`: what the published weights expect of an RGB image, 0..1.
    Raises UserError: timm is not there, has no such model, or the model has no such levels, no stride to take
    out, or takes no images of this size.
    """

    def __init__(
        self, name: str, config: ModelConfig, size: tuple[int, int], *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        timm = _timm(name)
        published = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, float, float] = tuple(published.mean)
        self.deviation: tuple[float, float, float] = tuple(published.std)
        inputs = 4 if config.mask_input == "channel" else 3
        options: dict[str, Any] = {"img_size": size} if published.fixed_input_size else {}
        try:
            net = timm.create_model(
                name, features_only=True, out_indices=config.levels, in_chans=inputs, **options
            )
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise _refused(name, error, "choose other model.levels or another backbone") from None
        if not hasattr(net, "return_layers") and not hasattr(net, "model"):
            raise _refused(name, "its features_only form is of a kind of its own", "use another backbone")
        if config.ibn and not mix_norms(net):
            raise _refused(name, "it has no ResNet's blocks", "leave model.ibn out")
        self.channels: tuple[int, ...] = tuple(net.feature_info.channels())
        self.recompute = recompute
        self.whole = hasattr(net, "model")  # a transformer: its own forward pass
        self.rows_last = net.output_fmt == "NHWC"
        self.taken: tuple[str, ...] = ()
        if self.whole:
            self._take_transformer(name, net, len(config.streams), inputs, size)
        else:
            self._take_stages(name, net, len(config.streams), inputs)
        _ignore_extra_channel(self, inputs)
        if config.last_stride == 1:
            self._take_last_stride_out(name)
        self._try(name, size, inputs * len(config.streams))

    def _take_transformer(
        self, name: str, net: Any, streams: int, inputs: int, size: tuple[int, int]
    ) -> None:
        self.body, self.indices = net.model, net.out_indices
        patches: Any = getattr(self.body, "patch_embed", None)
        if not isinstance(getattr(patches, "proj", None), nn.Conv2d):
            raise UserError(
                f'model.backbone = "{TIMM}{name}": no convolution embeds its patches; use another'
            )
        rows, columns = patches.patch_size
        if size[0] % rows or size[1] % columns:
            raise _refused(
                name,
                f"{size[0]}x{size[1]} images are no whole {rows}x{columns} patches",
                "choose data.height and data.width that are",
            )
        patches.proj = StreamStems(patches.proj, streams, inputs)
        self.body.set_grad_checkpointing(self.recompute)

    def _take_stages(self, name: str, net: Any, streams: int, inputs: int) -> None:
        """Stem: all before the first level, with the activation that is one itself."""
        parts: dict[str, nn.Module] = dict(net.items())
        first = next(iter(net.feature_info.info))["module"]
        places = list(parts)
        before = _place(first, places)
        cut = places.index(before) if before in places else 1
        if before in places and not list(parts[before].parameters()):
            cut += 1
        cut = max(1, cut)
        stem = nn.Sequential(OrderedDict((place, parts[place]) for place in places[:cut]))
        self.stems = StreamStems(stem, streams, inputs, rows_last=self.rows_last)
        self.body = nn.ModuleDict({place: parts[place] for place in places[cut:]})
        self.taken = tuple(net.return_layers)
        self.stem_is_level = any(place in self.taken for place in places[:cut])

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.whole:
            maps: list[Tensor] = self.body.forward_intermediates(
                x, indices=self.indices, output_fmt="NCHW", intermediates_only=True
            )
            return maps
        x = self._run(self.stems, x)
        levels = [x] if self.stem_is_level else []
        for place, part in self.body.items():
            x = self._run(part, x)
            if place in self.taken:
                levels.append(x)
        return [level.movedim(-1, 1) for level in levels] if self.rows_last else levels

    def _run(self, part: nn.Module, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled() and list(part.parameters()):
            return recomputed(part, x, random=True)  # stochastic depth, in some models
        y: Tensor = part(x)
        return y

    def _take_last_stride_out(self, name: str) -> None:
        """Of the last level's convolutions, and of the mean pool beside one in a shortcut."""
        found = False
        for part in self.body[self.taken[-1]].modules() if self.taken and not self.whole else ():
            for own, child in part.named_children():
                if isinstance(child, nn.AvgPool2d) and child.stride in (2, (2, 2)):
                    setattr(part, own, nn.Identity())
                elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                    if child.kernel_size[0] % 2 == 0:
                        raise _refused(name, "its last level merges blocks", "leave model.last_stride out")
                    child.stride = (1, 1)
                    found = True
        if not found:
            raise _refused(name, "its last level has no stride", "leave model.last_stride out")

    def _try(self, name: str, size: tuple[int, int], channels: int) -> None:
        """One image: whether the model takes this size is known before anything starts."""
        training = [part for part in self.modules() if part.training]
        self.eval()
        try:
            with torch.no_grad():
                self(torch.zeros(1, channels, *size))
        except (AssertionError, RuntimeError, ValueError) as error:
            fit = "choose data.height and data.width that fit it"
            raise _refused(name, error, f"{size[0]}x{size[1]} images: {fit}") from None
        for part in training:
            part.training = True

    def stream_stems(self) -> StreamStems:
        """Of a transformer its patch embeddings."""
        body: Any = self.body
        stems: StreamStems = body.patch_embed.proj if self.whole else self.stems
        return stems

    def positions(self) -> tuple[int, tuple[int, int] | None]:
        """Of a transformer: how many tokens come before the patches, and the patches' rows and columns."""
        if not self.whole:
            return 0, None
        patches: Any = self.body.patch_embed
        tokens: Any = getattr(self.body, "num_prefix_tokens", 0)
        return int(tokens), tuple(patches.grid_size)

    def places(self, name: str) -> list[str]:
        """The parameters or buffers of this trunk that stand for one of timm's plain model, of each stream's
        stem all copies; none for those that are not here."""
        here = self.state_dict()
        flat = name.replace(".", "_", 1)
        if self.whole:
            stem, rest = "patch_embed.proj.", name.removeprefix("patch_embed.proj.")
            if name.startswith(stem):
                patches: Any = self.body.patch_embed
                return [f"{BODY}.{stem}copies.{n}.{rest}" for n in range(len(patches.proj.copies))]
            return [f"{BODY}.{name}"] if f"{BODY}.{name}" in here else []
        for own in (name, flat):
            copies = [f"{STEMS}.copies.{number}.{own}" for number in range(len(self.stems.copies))]
            if copies[0] in here:
                return copies
            if f"{BODY}.{own}" in here:
                return [f"{BODY}.{own}"]
        return []


class TimmReID(ReIDNetwork):
    """Streams of images normalised as the trunk's published weights expect, trunk, skipped fusing layer."""

    def __init__(
        self, config: ModelConfig, size: tuple[int, int], classes: int = 0, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.streams = config.streams
        self.mask_channel = config.mask_input == "channel"
        self.trunk = TimmTrunk(config.backbone.removeprefix(TIMM), config, size, recompute=recompute)
        names = [str(number) for number in range(len(self.trunk.channels))]
        self.make_head(self.trunk.channels, names, config, classes)

    def fused_levels(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Sequence[Tensor]:
        levels: list[Tensor] = self.trunk(self._inputs(image_B3HW, mask_B1HW))
        return levels

    def stem_maps(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> dict[str, Tensor]:
        stems = self.trunk.stream_stems()
        maps = stems.outputs(self._inputs(image_B3HW, mask_B1HW))
        if stems.rows_last:
            maps = [stem_map.movedim(-1, 1) for stem_map in maps]
        return dict(zip(self.streams, maps, strict=True))

    def _inputs(self, image_B3HW: Tensor, mask_B1HW: Tensor) -> Tensor:
        """The streams, one after the other."""
        scale = (self.trunk.mean, self.trunk.deviation)
        inputs = [make_stream(stream, image_B3HW, mask_B1HW, scale) for stream in self.streams]
        if self.mask_channel:
            inputs.append(mask_B1HW.float() / 255.0)
        return torch.cat(inputs, dim=1)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f'model.backbone = "{TIMM}{name}" needs the package timm ({error}): '
            "pip install 'maskreid-dist[timm]'"
        ) from None
    if not timm.is_model(name):
        near = [*timm.list_models(f"*{name.split('_')[0]}*")[:3]]
        hint = f"; such as {', '.join(near)}" if near else ""
        raise UserError(f'model.backbone = "{TIMM}{name}": timm {timm.__version__} has no such model{hint}')
    return timm


def _refused(name: str, why: object, what: str) -> UserError:
    words = " ".join(str(why).split())[:160] or type(why).__name__
    return UserError(f'model.backbone = "{TIMM}{name}": {words}; {what}')


def _place(module: str, places: Sequence[str]) -> str:
    """timm's flattened name of a module: `stages.0` is `stages_0`."""
    return module if module in places else module.replace(".", "_", 1)


def _last_norm_or_convolution(stem: nn.Module) -> int:
    """The channels a stem ends with."""
    channels = 0
    for part in stem.modules():
        if isinstance(part, nn.Conv2d):
            channels = part.out_channels
        elif isinstance(part, nn.LayerNorm):
            channels = part.normalized_shape[-1]
        elif isinstance(part, _BatchNorm):
            channels = part.num_features
    return channels


def _ignore_extra_channel(trunk: nn.Module, inputs: int) -> None:
    """A mask channel starts without weight: the trunk starts as one that does not see it."""
    if inputs > 3:
        first = next(part for part in trunk.modules() if isinstance(part, nn.Conv2d))
        with torch.no_grad():
            first.weight[:, 3:] = 0.0
