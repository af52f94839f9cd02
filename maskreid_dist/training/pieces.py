"""A checkpoint's weights and optimizer states of whole parameters, from the pieces that its ranks saved.

DeepSpeed loads its pieces on as many ranks and at the ZeRO stage that wrote them. They hold everything, so
another division needs nothing else to be saved: at stages 1 and 2 each rank has a range of a group's
parameters laid end to end, at stage 3 an equal share of each parameter, the last one padded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.training.unpickling import tensors_only

COUNTERS = ("global_steps", "global_samples", "skipped_steps")  # DeepSpeed's own
STEP = "step"  # Adam's; all other states are as many values as the parameter has


class Place(NamedTuple):
    """Where a parameter begins in each rank's values of its group."""

    group: int
    start: int
    shape: torch.Size


class Pieces:
    """What a verified checkpoint holds of each parameter, on the host. Its files are mapped into memory: only
    what is asked for is read."""

    def __init__(self, checkpoint: Checkpoint, parameters: Sequence[tuple[str, torch.Size]]) -> None:
        """parameters: those that the optimizer has, in its order.

        Raises CheckpointError: a piece is missing, holds more than tensors, or is of another network.
        """
        self.path = checkpoint.path
        self._stage = checkpoint.config.engine.zero_stage
        self._ranks = checkpoint.world_size if self._stage else 1
        with _understood(self.path):
            self._models = [self._model(rank) for rank in range(self._ranks if self._stage == 3 else 1)]
            optimizers = [self._optimizer(rank) for rank in range(self._ranks)]
            self._states = [optimizer["state"] for optimizer, _ in optimizers]
            self._weights = [weights for _, weights in optimizers]
            self._places = self._found(parameters)
            first: dict[str, Any] = next(iter(self._states[0].values()), {})
            self.states = sorted(key for key, value in first.items() if key != STEP and value is not None)
            self.step = torch.as_tensor(first[STEP]) if STEP in first else None
            self.counters = {name: int(self._models[0][name]) for name in COUNTERS}

    def _model(self, rank: int) -> dict[str, Any]:
        piece = f"zero_pp_rank_{rank}_" if self._stage == 3 else ""
        return _read(self.path / f"{piece}mp_rank_00_model_states.pt")

    def _optimizer(self, rank: int) -> tuple[dict[str, Any], Sequence[Tensor]]:
        """What a rank saved of torch's optimizer, and under ZeRO 3 of the weights, group by group."""
        if not self._stage:
            return self._models[0]["optimizer"], ()
        file = _read(self.path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        piece = file["optimizer_state_dict"]
        if self._stage < 3:
            return piece["base_optimizer_state"], ()
        return piece["optimizer_state_dict"], piece["fp32_flat_groups"]

    def _found(self, parameters: Sequence[tuple[str, torch.Size]]) -> dict[str, Place]:
        if not self._stage:  # each is a group
            return {name: Place(number, 0, shape) for number, (name, shape) in enumerate(parameters)}
        groups = self._models[0]["param_shapes"]
        listed = [(name, shape) for group in groups for name, shape in group.items()]
        if listed != list(parameters):
            raise CheckpointError(f"{self.path}: its pieces are of other parameters; use another checkpoint")
        places = {}
        for number, group in enumerate(groups):
            start = 0
            for name, shape in group.items():
                places[name] = Place(number, start, shape)
                start += shape.numel() if self._stage < 3 else share(shape.numel(), self._ranks)
        return places

    def state(self, name: str, key: str) -> Tensor:
        """A parameter's state in whole, one of `states`, in its shape. Zeros where it never had a gradient.

        Raises CheckpointError: the pieces do not hold it.
        """
        place = self._places[name]
        with _understood(self.path):
            if not self._stage and place.group not in self._states[0]:
                return torch.zeros(place.shape)
            return self._whole([piece[place.group][key] for piece in self._states], place)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers in whole. Raises CheckpointError: the pieces do not hold them."""
        with _understood(self.path):
            module: dict[str, Tensor] = self._models[0]["module"]
            if self._stage < 3:
                return module
            whole = {name: module[name] for name in self._models[0]["buffer_names"]}
            for name, place in self._places.items():
                whole[name] = self._whole([piece[place.group] for piece in self._weights], place)
            for name, shape in (self._models[0]["frozen_param_shapes"] or {}).items():
                parts = [model["frozen_param_fragments"][name] for model in self._models]
                whole[name] = self._whole(parts, Place(0, 0, shape))
            return whole

    def _whole(self, values: Sequence[Tensor], place: Place) -> Tensor:
        size = place.shape.numel()
        flat = [value.detach().reshape(-1) for value in values]
        if self._stage < 3:
            return end_to_end(flat, place.start, size).view(place.shape)
        part = share(size, self._ranks)
        return torch.cat([value[place.start : place.start + part] for value in flat])[:size].view(place.shape)


def share(size: int, ranks: int) -> int:
    """Values of a parameter on each of `ranks` under ZeRO 3."""
    return -(-size // ranks)


def end_to_end(values: Sequence[Tensor], start: int, size: int) -> Tensor:
    """(size,) from `start` on, of 1-d tensors laid end to end."""
    parts = []
    for value in values:
        parts.append(value[max(start, 0) : max(start + size, 0)])
        start -= len(value)
    return torch.cat(parts)


def _read(path: Path) -> dict[str, Any]:
    with tensors_only(path.parent):
        piece = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(piece, dict):
        raise TypeError(f"{path.name} is no table")
    return piece


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """What is not where DeepSpeed 0.19 puts it, as a CheckpointError."""
    try:
        yield
    except CheckpointError:  # a ValueError too
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: missing; use another checkpoint") from None
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, EOFError) as error:
        words = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path}: its pieces are not as DeepSpeed saves them ({type(error).__name__}: {words}); "
            "use another checkpoint"
        ) from None
