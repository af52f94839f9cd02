"""What one rank alone finds wrong before the training: all say it, once a machine, and leave with status
2."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from maskreid_dist.errors import UserError
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_dist.training.environment import Place
from maskreid_dist.training.leaving import last_words
from maskreid_dist.training.meeting import Meeting, Member, PeersLost
from maskreid_dist.training.saving import check_pieces
from nodes import run_nodes, write_recipe

HOST = socket.gethostname()


def test_every_rank_s_problem_is_said_on_every_node(tmp_path: Path) -> None:
    """Under two deepspeed launchers: a recipe that is none on one node, no shards on the other."""
    recipe = write_recipe(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    ended = run_nodes(
        [
            [recipe, "--runs", tmp_path / "runs", "--set", "data.shards=/nowhere"],
            [broken, "--runs", tmp_path / "runs"],
        ],
        launcher=tmp_path,
    )
    for node in ended:
        assert node.status == 2, node.output
        first, second = node.errors
        assert first.startswith(f"rank 0 on {HOST}: /nowhere: no manifest.json"), first
        assert second.startswith(f"rank 1 on {HOST}: {broken}: not valid TOML"), second
        assert "Traceback" not in node.output
    assert not (tmp_path / "runs").exists()


def test_two_launchers_train(tmp_path: Path) -> None:
    """Two steps of a rank on each of two nodes, and a save of both."""
    few = ("--set", "optimizer.steps=2", "--set", "engine.zero_stage=1")
    arguments: list[str | Path] = [write_recipe(tmp_path), "--runs", tmp_path / "runs", *few]
    ended = run_nodes([arguments] * 2, launcher=tmp_path)
    assert [node.status for node in ended] == [0, 0], ended[0].output + ended[1].output
    assert ended[0].seconds is None  # nothing went wrong
    run = tmp_path / "runs" / "tiny"
    checkpoint = find_checkpoint(run)[0]
    assert (checkpoint.step, checkpoint.world_size) == (2, 2)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    check_pieces(checkpoint.path, 1, [0, 1])


def test_a_run_directory_that_rank_0_cannot_make_is_said_on_every_node(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    ended = run_nodes([[recipe, "--runs", recipe]] * 2)  # the recipe's own file is no directory
    for node in ended:
        assert (node.status, len(node.errors)) == (2, 1), node.output
        assert node.errors[0].startswith(f"rank 0 on {HOST}: {recipe}/tiny: cannot be written"), node.errors
        assert "Traceback" not in node.output


def test_problems_are_said_once_with_their_ranks() -> None:
    meeting = Meeting(Place(0, 0, 6), None, 1.0)  # type: ignore[arg-type]
    meeting.members = [Member(f"node{rank // 2}", rank % 2) for rank in range(6)]
    assert meeting.lines([None] * 6) == []
    assert meeting.lines(["no shards"] * 6) == ["no shards"]
    assert meeting.lines([None, "no shards", "no shards", "old", "no shards", None]) == [
        "ranks 1-2, 4 on node0, node1, node2: no shards",
        "rank 3 on node1: old",
    ]


def test_texts_are_exchanged_and_one_who_leaves_frees_the_others() -> None:
    """Three ranks as threads, at a store of their own."""
    store = TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)

    def rank(number: int) -> list[object]:
        meeting = Meeting(Place(number, number, 3), store.clone(), 60.0)  # type: ignore[attr-defined]
        meeting.join()
        said: list[object] = [meeting.gather({"rank": number}), meeting.from_first(number + 7)]
        if number == 1:
            meeting.store.add("leaving", 1)
            return said
        with pytest.raises(PeersLost, match="another rank is leaving"):
            meeting.gather(None)
        return said

    with ThreadPoolExecutor(3) as threads:
        for said in threads.map(rank, range(3)):
            assert said == [[{"rank": 0}, {"rank": 1}, {"rank": 2}], 7]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UserError("lower it"), "user", "lower it"),
        (OSError(28, "No space left on device", "/runs/x"), "system", "/runs/x: No space left on device"),
        (OSError(2, "No such file", b"/runs/y"), "system", "/runs/y: No such file"),
        (OSError(38, "Function not implemented"), "system", "Function not implemented"),
        (PeersLost("another rank is leaving"), "lost", "another"),
        (PeersLost("rank 3 did not come", waited=True), "late", "rank 3 did not come"),
        (
            RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for"),
            "late",
            "lost",
        ),
        (
            RuntimeError("Caught RuntimeError.\nRuntimeError: unable to open shared memory object </x>"),
            "system",
            "/dev",
        ),
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed"),
            "lost",
            "lost",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "system",
            "a data worker died",
        ),
        (KeyError("x"), "defect", "KeyError: 'x'"),
    ],
)
def test_last_words(error: Exception, kind: str, text: str) -> None:
    words = last_words(error)
    assert words.kind == kind and words.text.startswith(text) and "\n" not in words.text
