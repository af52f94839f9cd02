"""A newest checkpoint that is damaged, foreign or malicious: the one before it is taken, loudly, or one
line says why."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place
from maskreid_dist.training.meeting import Meeting
from maskreid_dist.training.resuming import checkpoint_to_continue
from maskreid_dist.training.run_folder import RunFolder
from maskreid_dist.training.unpickling import tensors_only
from nodes import run_nodes, write_recipe

MODEL = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4. Read only."""
    runs = tmp_path_factory.mktemp("trained")
    (node,) = run_nodes([[recipe, "--runs", runs]])
    assert node.status == 0, node.output
    return runs / "tiny"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "tiny")


class Malicious:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def list_again(checkpoint: Path) -> None:
    """Let the manifest say of every file what it is now."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def flip(checkpoint: Path) -> None:
    data = bytearray((checkpoint / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / MODEL).write_bytes(data)


def spoil_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "weights.safetensors")
    next(value for value in weights.values() if value.is_floating_point()).view(-1)[0] = torch.nan
    save_file(weights, checkpoint / "weights.safetensors")
    list_again(checkpoint)


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def folder_in_place_of_a_file(checkpoint: Path) -> None:
    (checkpoint / MODEL).unlink()
    (checkpoint / MODEL).mkdir()


def foreign(checkpoint: Path) -> None:
    """Files of another training, with the manifest of this one."""
    (checkpoint / MODEL).write_bytes(b"PK" + bytes(4000))


# What is done to the newest checkpoint, and what is said of it.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path / MODEL, 1000), f"{MODEL}: 1000 bytes, the manifest says"),
    "emptied": (lambda path: (path / MODEL).write_bytes(b""), f"{MODEL}: 0 bytes, the manifest says"),
    "bit-flipped": (flip, f"{MODEL}: its sha256 differs"),
    "partly missing": (lambda path: (path / MODEL).unlink(), f"{MODEL}: missing"),
    "emptied directory": (empty, "manifest.json: missing"),
    "foreign": (foreign, f"{MODEL}: 4002 bytes, the manifest says"),
    "a folder": (folder_in_place_of_a_file, f"{MODEL}: "),
    "one more file": (
        lambda path: shutil.copy(path / MODEL, path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "zero_pp_rank_0_mp_rank_00_optim_states.pt: not in the manifest",
    ),
    "not finite": (spoil_weights, "is not finite"),
    "manifest emptied": (lambda path: (path / "manifest.json").write_bytes(b""), "not a checkpoint manifest"),
    "manifest of bytes": (
        lambda path: (path / "manifest.json").write_bytes(b"\xff\x00"),
        "not a checkpoint manifest",
    ),
    "manifest of another kind": (
        lambda path: (path / "manifest.json").write_text("[1]"),
        "not a checkpoint manifest",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken_loudly(
    run: Path, recipe: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    act, words = DAMAGES[damage]
    newest = run / "checkpoints" / "step_00000004"
    act(newest)
    found, passed_over = find_checkpoint(run)  # as `maskreid evaluate` does
    assert found.step == 2
    assert words in passed_over[0] and str(newest) in passed_over[0]

    def continued() -> int:
        store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
        meeting = Meeting(Place(), store, 60.0)
        meeting.join()
        fingerprint = found.shards_fingerprint
        folder = RunFolder(run, 0, (0,), None)
        checkpoint = checkpoint_to_continue(load_recipe(recipe), folder, fingerprint, meeting)
        assert checkpoint
        return checkpoint.step

    assert continued() == 2  # as `--resume` does
    said = capsys.readouterr().out
    assert f"warning: passed over {newest}" in said and words in said
    act(run / "checkpoints" / "step_00000002")
    with pytest.raises(CheckpointError, match="no usable checkpoint here"):
        continued()


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_before_it_is_run(tmp_path: Path, kind: str) -> None:
    path, made = tmp_path / MODEL, tmp_path / "made"
    if kind == "torch":
        torch.save({"module": torch.zeros(2), "more": Malicious(made)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(made), protocol=2))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        with tensors_only(path):
            torch.load(path, weights_only=False)  # as DeepSpeed does
    assert not made.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    with suppress(Exception):  # what it makes is no checkpoint
        torch.load(path, weights_only=False)
    assert made.exists() or kind == "pickle"  # it works: torch reads no bare pickle to its end


def test_a_malicious_checkpoint_with_a_right_manifest_ends_the_resume_in_one_line(
    run: Path, recipe: Path, tmp_path: Path
) -> None:
    newest, made = run / "checkpoints" / "step_00000004", tmp_path / "made"
    torch.save({"module": Malicious(made)}, newest / MODEL)
    list_again(newest)
    (node,) = run_nodes([[recipe, "--runs", run.parent, "--resume", "--set", "optimizer.steps=6"]])
    assert node.status == 2, node.output
    (error,) = node.errors
    assert error.startswith(f"{newest}: holds more than tensors (GLOBAL posix.mkdir")
    assert "Traceback" not in node.output
    assert not made.exists()
