"""Initial weights: tensors of another network's file, by name and shape, and the map of what was taken."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from maskreid_dist.config import TIMM, ModelConfig
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import WEIGHTS, find_checkpoint
from maskreid_dist.model.key_maps import fitted, in_timms_names
from maskreid_dist.model.pretrained import place_of
from maskreid_dist.model.timm_weights import PUBLISHED, published_weights
from maskreid_shards.opening import WEIGHTS_BYTES, read_file

TORCH_SUFFIXES = {".pth", ".pt", ".bin", ".tar"}
TORCH_KEYS = ("teacher", "target_encoder", "state_dict", "model", "module")  # of a dict around the tensors
NAMES_OF_A_LINE = 6  # the manifest has all


@dataclass(frozen=True)
class InitialWeights:
    """Where a network's first weights are from. Names are those of its state: parameters and buffers."""

    file: str
    sha256: str
    taken: tuple[str, ...]
    other_shape: tuple[str, ...]  # "NAME: (200, 256) there, (751, 256) here"; kept as drawn
    not_there: tuple[str, ...]  # of the network; kept as drawn
    left_out: tuple[str, ...]  # of the file
    form: str = "own"  # whose names the file has: this project's, or of maskreid_dist.model.key_maps

    def lines(self) -> list[str]:
        """For a log."""
        all_here = len(self.taken) + len(self.other_shape) + len(self.not_there)
        names_of = "" if self.form == "own" else f", by the names of {self.form}"
        lines = [f"initial weights: {len(self.taken)} of {all_here} tensors from {self.file}{names_of}"]
        for what, names in (
            ("of another shape, not taken", self.other_shape),
            ("not there, kept as drawn", self.not_there),
            ("there and not in this network", self.left_out),
        ):
            if names:
                lines.append(f"  {what}: {_shown(names)}")
        return lines

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def initial_file(path: Path) -> Path:
    """The safetensors file of `model.init`: itself, of a run's newest usable checkpoint, a checkpoint's, or
    that of "pretrained:NAME".

    Raises CheckpointError: there is none, or it is damaged.
    """
    path = place_of(path)
    if path.is_dir():
        return find_checkpoint(path)[0].path / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"model.init = {str(path)!r}: no such file; "
            "name a safetensors file, a run directory or a checkpoint"
        )
    return path


def check_initial(model: ModelConfig) -> None:
    """Raise CheckpointError where `model.init` cannot be read, or is timm's of another trunk than timm's.
    Nothing is fetched."""
    if model.init == PUBLISHED and not model.backbone.startswith(TIMM):
        raise CheckpointError(
            f"model.init = {PUBLISHED!r} needs a trunk of timm: model.backbone = 'timm:NAME'"
        )
    if model.init and model.init != PUBLISHED:
        initial_file(Path(model.init))


def take_initial_weights(network: nn.Module, path: Path) -> InitialWeights:
    """Copy every tensor that has the name and shape of one of the network's, parameter or buffer.

    path: as in `initial_file`, or "pretrained:timm", the weights that timm publishes of the network's trunk.
    Raises CheckpointError, with the network as it was: no safetensors, none that fits, values that are not
    finite.
    """
    file: Path | str
    try:
        if str(path) == PUBLISHED:
            file, data = published_weights(str(network.get_submodule("trunk").name))
            there = load(data)
        else:
            file = initial_file(path)
            data = read_file(file, WEIGHTS_BYTES)
            there = _tensors(file, data)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; name another model.init") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: not a safetensors file ({error}); name another model.init, or convert it"
        ) from None
    here = network.state_dict()
    form, trunk = "own", getattr(network, "trunk", None)
    if isinstance(trunk, nn.Module) and not any(name in here for name in there):
        form, there = _of_a_trunk(trunk, there)
    taken = [name for name in here if name in there and there[name].shape == here[name].shape]
    other = [name for name in here if name in there and there[name].shape != here[name].shape]
    if not any(name in dict(network.named_parameters()) for name in taken):
        raise CheckpointError(
            f"{file}: none of its tensors has the name and shape of a parameter of this network "
            f"({_shown(there) or 'it is empty'}); name another model.init"
        )
    broken = [name for name in taken if not torch.isfinite(there[name]).all()]
    if broken:
        raise CheckpointError(
            f"{file}: values that are not finite in {_shown(broken)}; name another model.init"
        )
    with torch.no_grad():
        for name in taken:
            here[name].copy_(there[name])  # its dtype may be another
    return InitialWeights(
        file=str(file),
        sha256=hashlib.sha256(data).hexdigest(),
        taken=tuple(taken),
        other_shape=tuple(
            f"{name}: {tuple(there[name].shape)} there, {tuple(here[name].shape)} here" for name in other
        ),
        not_there=tuple(name for name in here if name not in there),
        left_out=tuple(sorted(name for name in there if name not in here)),
        form=form,
    )


def _tensors(file: Path, data: bytes) -> dict[str, Tensor]:
    """By name. A file of torch.save may hold them in a dict of a dict: `teacher`, `state_dict`, ...

    Raises SafetensorError. Only tensors are unpickled.
    """
    if file.suffix not in TORCH_SUFFIXES:
        there: dict[str, Tensor] = load(data)
        return there
    try:
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever the file is
        raise SafetensorError(f"nor tensors of torch.save: {type(error).__name__}") from None
    while isinstance(found, dict):
        inner = [found[key] for key in TORCH_KEYS if isinstance(found.get(key), dict)]
        if not inner:
            break
        found = inner[0]
    tensors = found.items() if isinstance(found, dict) else ()
    return {str(name): tensor for name, tensor in tensors if isinstance(tensor, Tensor)}


def _of_a_trunk(trunk: Any, there: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """A published trunk's tensors by the names of a network with a trunk of timm; the others by their own."""
    form, renamed = in_timms_names(there)
    state = trunk.state_dict()
    prefix, grid = trunk.positions()
    placed: dict[str, Tensor] = {}
    for name, tensor in there.items():
        own, values = renamed.get(name, ("", tensor))
        places = trunk.places(own) if own else []
        for place in places:
            fit = fitted(values, state[place], prefix, grid)
            placed[f"trunk.{place}"] = values if fit is None else fit
        if not places:
            placed[name] = tensor
    return form, placed


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMES_OF_A_LINE} more" if len(listed) > NAMES_OF_A_LINE else ""
    return ", ".join(listed[:NAMES_OF_A_LINE]) + more
