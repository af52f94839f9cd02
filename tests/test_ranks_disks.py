"""Run directories on one shared disk, and on a disk of each machine: here two folders stand for the disks."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from maskreid_dist.errors import UserError
from maskreid_dist.model.checkpoint import finished_checkpoints
from maskreid_dist.training.environment import Place
from maskreid_dist.training.meeting import Meeting, Member
from maskreid_dist.training.run_folder import agree_on_keepers
from maskreid_dist.training.saving import check_pieces
from nodes import LAUNCHERS, Ended, check_left_in_time, run_nodes, write_recipe

HOST = socket.gethostname()


def train(tmp_path: Path, *arguments: str, launcher: str | None = None) -> list[Ended]:
    """A rank on each of two machines with a disk each, `disk0` and `disk1`."""
    recipe = write_recipe(tmp_path)
    return run_nodes(
        [[recipe, "--runs", tmp_path / f"disk{node}", *arguments] for node in range(2)],
        launcher=tmp_path if launcher else None,
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_disks_are_refused_unless_the_recipe_knows(
    tmp_path: Path, launcher: str | None, record_property: Callable[[str, object], None]
) -> None:
    nodes = train(tmp_path, launcher=launcher)
    for node in nodes:
        assert node.status == 2, node.output
        assert node.errors == [
            f"rank 1 on {HOST}: {tmp_path}/disk1/tiny: is not the run directory that rank 0 writes; the "
            "ranks need one that all machines share (--runs), or run.local_checkpoints = true"
        ]
    assert not (tmp_path / "disk1").exists()
    check_left_in_time(nodes, record_property)


def test_each_disk_keeps_its_pieces_and_resuming_needs_them_all(tmp_path: Path) -> None:
    local = ("--set", "run.local_checkpoints=true", "--set", "engine.zero_stage=1")
    assert [node.status for node in train(tmp_path, *local)] == [0, 0]
    disks = [tmp_path / f"disk{node}" / "tiny" / "checkpoints" for node in range(2)]
    manifests = [json.loads((disk / "step_00000004" / "manifest.json").read_text()) for disk in disks]
    assert [manifest["ranks"] for manifest in manifests] == [[0], [1]]
    assert manifests[0]["save"] == manifests[1]["save"]
    for rank, manifest in enumerate(manifests):
        pieces = [name for name in manifest["files"] if "optim_states" in name]
        assert pieces == [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"]
        assert {"mp_rank_00_model_states.pt", "weights.safetensors"} < set(manifest["files"])
    metrics = tmp_path / "disk0" / "tiny" / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]

    piece = disks[1] / "step_00000004" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    piece.write_bytes(piece.read_bytes()[:-7])
    first, second = train(tmp_path, *local, "--resume")
    assert (first.status, second.status) == (0, 0), first.output + second.output
    assert f"warning: passed over rank 1 on {HOST}: {piece}: " in first.output
    assert f"continuing from {disks[0]}/step_00000002" in first.output
    assert [json.loads(line)["loss"] for line in metrics.read_text().splitlines()] == losses
    assert all(len(finished_checkpoints(disk)) == 2 for disk in disks)

    shutil.rmtree(disks[1])
    for node in train(tmp_path, *local, "--resume"):
        assert node.status == 2, node.output
        (error,) = node.errors
        assert error.startswith("no checkpoint is whole in the run directories of all machines (there are ")
        assert f"none of rank 1 on {HOST}" in error


def test_keepers() -> None:
    meeting = Meeting(Place(0, 0, 4), None, 1.0)  # type: ignore[arg-type]
    meeting.members = [Member(f"node{rank // 2}", rank % 2) for rank in range(4)]
    assert agree_on_keepers(meeting, [["/runs", "0"]] * 4, local=False) == (0, 0, 0, 0)
    disks = [["/a", "0"], ["/a", "0"], ["/b", "2"], ["/b", "2"]]
    assert agree_on_keepers(meeting, disks, local=True) == (0, 0, 2, 2)
    with pytest.raises(
        UserError, match=r"^ranks 2-3 on node1: /b: is not the run directory that rank 0 writes"
    ):
        agree_on_keepers(meeting, [["/a", "0"], ["/a", "0"], ["/b"], ["/b"]], local=False)
    with pytest.raises(
        UserError, match=r"^/runs: local rank 0 of several machines writes here \(ranks 0, 2\)"
    ):
        agree_on_keepers(meeting, [["/runs", "0", "2"]] * 4, local=True)
    with pytest.raises(
        UserError, match=r"^rank 3 on node1: /c: local rank 0 of this machine writes elsewhere"
    ):
        agree_on_keepers(meeting, [*disks[:3], ["/c"]], local=True)


@pytest.mark.parametrize(
    "missing", ["mp_rank_00_model_states.pt", "zero_pp_rank_3_mp_rank_00_optim_states.pt"]
)
def test_a_save_wants_every_rank_s_file(tmp_path: Path, missing: str) -> None:
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (2, 3)]
    for name in (*names, "mp_rank_00_model_states.pt"):
        (tmp_path / name).touch()
    check_pieces(tmp_path, 1, [2, 3])
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        check_pieces(tmp_path, 1, [2, 3])
