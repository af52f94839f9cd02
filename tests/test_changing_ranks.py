"""Going on with other ranks or at another ZeRO stage: a part of `make exactness`, the layout of the
pieces against loops, and pieces that are damaged, foreign or malicious."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from changing_ranks import Training, run_trainings
from checkpoints import RECIPE, SMALL, write_run
from exactness import LIMIT
from maskreid_dist.config import Config
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place
from maskreid_dist.training.meeting import Meeting
from maskreid_dist.training.pieces import Pieces
from maskreid_dist.training.redividing import weights_to_divide
from maskreid_dist.training.resuming import checkpoint_to_continue
from maskreid_dist.training.run_folder import RunFolder
from test_checkpoint_damage import Malicious
from test_gradient_cache import recipe

STEPS = 6
SHAPES = {"a.weight": (3, 5), "b.weight": (2, 2), "a.bias": (5,), "b.bias": (1,)}
GROUPS = (("a.weight", "b.weight"), ("a.bias", "b.bias"))
STATES = ("exp_avg", "exp_avg_sq")


def test_ranks_and_stages_change_and_nothing_else_does(tmp_path: Path) -> None:
    """1 -> 2 ranks. (2 -> 1 from the command line: test_train.py.)"""
    trainings = [
        Training("sgd", (1, 1)),
        Training("adamw", (2, 2)),
        Training("adamw", (3, 3)),
        Training("adamw", (0, 3), "optimizer"),
        Training("sgd", (3, 2)),
        Training("sgd", (3, 3), "all"),
    ]
    found = run_trainings((1, 2), trainings, STEPS, tmp_path)
    for training, (distance, same) in zip(trainings, found, strict=True):
        assert same and distance <= LIMIT, (training, distance, same)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            module, own = name.split(".")
            if not hasattr(self, module):
                self.add_module(module, nn.Module())
            self.get_submodule(module).register_parameter(own, nn.Parameter(torch.zeros(shape)))
        self.register_buffer("mean", torch.zeros(2))


def whole_values() -> dict[str, dict[str, Tensor]]:
    """By parameter, its weight and states."""
    torch.manual_seed(0)
    return {name: {key: torch.randn(shape) for key in ("weight", *STATES)} for name, shape in SHAPES.items()}


def write_pieces(folder: Path, stage: int, ranks: int) -> dict[str, dict[str, Tensor]]:
    """A checkpoint's files of `ranks` as DeepSpeed writes them, laid out by loops over single values."""
    whole = whole_values()
    counters = {"global_steps": 7, "global_samples": 70, "skipped_steps": 0}
    buffers = {"mean": torch.tensor([1.0, 2.0])}
    shapes = [{name: torch.Size(SHAPES[name]) for name in group} for group in GROUPS]
    common = {**counters, "buffer_names": ["mean"], "param_shapes": shapes, "frozen_param_shapes": {}}
    if stage == 0:
        names = [name for group in GROUPS for name in group]
        state = {
            i: {k: whole[n][k] for k in STATES} | {"step": torch.tensor(7.0)} for i, n in enumerate(names)
        }
        common["optimizer"] = {"state": state, "param_groups": []}
    if stage < 3:
        module = {name: values["weight"] for name, values in whole.items()}
        torch.save({**common, "module": {**module, **buffers}}, folder / "mp_rank_00_model_states.pt")
    for rank in range(ranks if stage else 0):
        flat = [
            {key: flat_part(whole, group, key, stage, ranks, rank) for key in ("weight", *STATES)}
            for group in GROUPS
        ]
        base = {
            "state": {i: {k: g[k] for k in STATES} | {"step": torch.tensor(7.0)} for i, g in enumerate(flat)},
            "param_groups": [],
        }
        piece: dict[str, Any] = {"base_optimizer_state": base}
        if stage == 3:
            piece = {"optimizer_state_dict": base, "fp32_flat_groups": [g["weight"] for g in flat]}
            model = {**common, "module": buffers}
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save(
            {"optimizer_state_dict": piece}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        )
    return whole


def flat_part(
    whole: dict[str, dict[str, Tensor]], group: tuple[str, ...], key: str, stage: int, ranks: int, rank: int
) -> Tensor:
    """A rank's values of a group, value by value, 9 where there is padding."""
    own: list[float] = []
    if stage == 3:
        for name in group:
            values = whole[name][key].flatten().tolist()
            while len(values) % ranks:
                values.append(9.0)
            count = len(values) // ranks
            own += values[rank * count : (rank + 1) * count]
        return torch.tensor(own)
    values = [value for name in group for value in whole[name][key].flatten().tolist()]
    while len(values) % (2 * ranks):
        values.append(9.0)
    count = len(values) // ranks
    return torch.tensor(values[rank * count : (rank + 1) * count])


def checkpoint_of(folder: Path, stage: int, ranks: int) -> Checkpoint:
    config = recipe(engine={"zero_stage": stage})
    return Checkpoint(folder, 7, config, 0, ranks, "", None, [], "")


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_pieces_of_any_number_of_ranks_are_put_together(tmp_path: Path, stage: int, ranks: int) -> None:
    whole = write_pieces(tmp_path, stage, ranks)
    network = Small()
    pieces = weights_to_divide(network, checkpoint_of(tmp_path, stage, ranks), adamw(stage))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, whole[name]["weight"]), name
        for key in STATES:
            assert torch.equal(pieces.state(name, key), whole[name][key]), (name, key)
    assert network.get_buffer("mean").tolist() == [1.0, 2.0]
    assert pieces.states == list(STATES) and pieces.step is not None and float(pieces.step) == 7
    assert pieces.counters["global_steps"] == 7


def adamw(stage: int) -> Config:
    return recipe(optimizer={"name": "adamw"}, engine={"zero_stage": stage})


def rewritten(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = torch.load(folder / name, weights_only=True)
        change(content)
        torch.save(content, folder / name)

    return act


PIECE = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
MODEL = "mp_rank_00_model_states.pt"
BAD_PIECES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / PIECE).unlink(), f"{PIECE}: missing"),
    "of another network": (
        rewritten(MODEL, lambda content: content["param_shapes"][0].update({"c": torch.Size([1])})),
        "its pieces are of other parameters",
    ),
    "without states": (
        rewritten(PIECE, lambda content: content["optimizer_state_dict"].clear()),
        "not as DeepSpeed saves them (KeyError: 'base_optimizer_state')",
    ),
    "too short": (
        rewritten(
            PIECE,
            lambda content: content["optimizer_state_dict"]["base_optimizer_state"]["state"][0].update(
                exp_avg=torch.zeros(1)
            ),
        ),
        "not as DeepSpeed saves them (RuntimeError: ",
    ),
    "without a weight": (
        rewritten(MODEL, lambda content: content["module"].pop("a.bias")),
        "does not match its recipe",
    ),
    "no table": (lambda folder: torch.save([1], folder / PIECE), "is no table"),
    "no torch file": (lambda folder: (folder / PIECE).write_bytes(b"\x80\x02."), "use another checkpoint"),
    "malicious": (
        lambda folder: torch.save({"optimizer_state_dict": Malicious(folder / "made")}, folder / PIECE),
        "holds more than tensors (GLOBAL posix.mkdir",
    ),
    "malicious weights": (
        lambda folder: torch.save({"module": Malicious(folder / "made")}, folder / MODEL),
        "holds more than tensors (GLOBAL posix.mkdir",
    ),
}


@pytest.mark.parametrize("kind", BAD_PIECES)
def test_bad_pieces_are_one_line_and_run_nothing(tmp_path: Path, kind: str) -> None:
    write_pieces(tmp_path, 2, 3)
    act, words = BAD_PIECES[kind]
    act(tmp_path)

    def read_all() -> None:
        pieces: Pieces = weights_to_divide(Small(), checkpoint_of(tmp_path, 2, 3), adamw(2))
        for name in SHAPES:
            pieces.state(name, "exp_avg")

    with pytest.raises(CheckpointError) as caught:
        read_all()
    said = str(caught.value)
    assert words in said and str(tmp_path) in said and "\n" not in said
    assert not (tmp_path / "made").exists()


def test_a_disk_that_lacks_pieces_says_what_would_do(tmp_path: Path) -> None:
    """The run directory of a machine that had rank 0 of 2, and now has all there is."""
    run = write_run(tmp_path / "own", "engine.zero_stage=1")
    (manifest,) = run.rglob("manifest.json")
    saved = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**saved, "world_size": 2, "ranks": [0]}))
    store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    meeting = Meeting(Place(), store, 60.0)
    meeting.join()
    config = load_recipe(RECIPE, [*SMALL, "name=own", "engine.zero_stage=1"])
    with pytest.raises(CheckpointError) as caught:
        checkpoint_to_continue(config, RunFolder(run, 0, (0,), None), "f" * 64, meeting)
    said = str(caught.value)
    assert "the pieces of ranks [1] are not here; dividing them anew needs all of them" in said
    assert "continue with 2 ranks, engine.zero_stage = 1" in said and "\n" not in said
    manifest.write_text(json.dumps({**saved, "world_size": 2, "ranks": [0, 1]}))
    assert checkpoint_to_continue(config, RunFolder(run, 0, (0,), None), "f" * 64, meeting)
