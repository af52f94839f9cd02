"""Ranks that were started with other recipes, shards or programs say so and leave before they train."""

import shutil
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from maskreid_dist.errors import UserError
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place
from maskreid_dist.training.facts import differences, facts_of_rank, source_digest
from maskreid_dist.training.meeting import Meeting, Member
from maskreid_dist.training.preparing import check_gpus
from maskreid_shards import open_shards
from nodes import LAUNCHERS, ROOT, check_left_in_time, run_nodes, write_recipe

HOST = socket.gethostname()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_difference_is_a_line_on_every_node(
    tmp_path: Path, launcher: str | None, record_property: Callable[[str, object], None]
) -> None:
    recipe = write_recipe(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(ROOT / "shards" / "walkers")  # the same shards in another place: no difference
    ended = run_nodes(
        [
            [recipe, "--runs", tmp_path / "runs"],
            [
                *(recipe, "--runs", tmp_path / "runs", "--set", "optimizer.lr=0.01", "--set", "seed=6"),
                *("--set", f"data.shards={elsewhere}", "--resume"),
            ],
        ],
        launcher=tmp_path if launcher else None,
    )
    for node in ended:
        assert node.status == 2, node.output
        assert node.errors == [
            f"seed is not the same on all ranks: 5 on rank 0 on {HOST}; 6 on rank 1 on {HOST}",
            f"optimizer.lr is not the same on all ranks: 0.001 on rank 0 on {HOST}; 0.01 on rank 1 on {HOST}",
            f"--resume is not the same on all ranks: false on rank 0 on {HOST}; true on rank 1 on {HOST}",
        ]
        assert "Traceback" not in node.output
    assert not (tmp_path / "runs").exists()
    check_left_in_time(ended, record_property)


def test_a_difference_names_values_ranks_and_hosts() -> None:
    meeting = Meeting(Place(0, 0, 4), None, 1.0)  # type: ignore[arg-type]
    meeting.members = [Member(f"node{rank // 2}", rank % 2) for rank in range(4)]
    facts = [{"a": [1, "one"], "b": [2, "two"]} for _ in range(4)]
    assert differences(meeting, facts) == []
    facts[3] = {"a": [7, "seven"], "c": [3, "three"]}
    assert differences(meeting, facts) == [
        "a is not the same on all ranks: one on ranks 0-2 on node0, node1; seven on rank 3 on node1",
        "b is not the same on all ranks: two on ranks 0-2 on node0, node1; none on rank 3 on node1",
        "c is not the same on all ranks: none on ranks 0-2 on node0, node1; three on rank 3 on node1",
    ]


def test_two_ranks_on_one_gpu_are_refused() -> None:
    meeting = Meeting(Place(0, 0, 3), None, 1.0)  # type: ignore[arg-type]
    meeting.members = [Member("node0", 0), Member("node1", 0), Member("node0", 1)]
    check_gpus(meeting, torch.device("cuda"))
    meeting.members[2] = Member("node0", 0)
    check_gpus(meeting, torch.device("cpu"))
    with pytest.raises(UserError, match=r"^ranks 0, 2 on node0 would share GPU 0"):
        check_gpus(meeting, torch.device("cuda"))


def test_what_is_compared(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    walkers = open_shards(ROOT / "shards" / "walkers")
    config = load_recipe(recipe)
    device = torch.device("cpu")

    def changed(*overrides: str, split: str = "train", resume: bool = False, device: str = "cpu") -> set[str]:
        other = facts_of_rank(
            load_recipe(recipe, overrides), walkers.split(split), resume, torch.device(device)
        )
        return {key for key, fact in other.items() if fact.value != facts[key].value}

    facts = facts_of_rank(config, walkers.split("train"), False, device)
    assert changed() == set()
    assert changed("data.shards=/elsewhere") == set()
    assert changed("run.checkpoint_every=3", "model.embedding_dim=7", "loss.margin=0.2") == {
        "run.checkpoint_every",
        "model.embedding_dim",
        "loss.margin",
    }
    assert changed(split="gallery") == {"the shards' fingerprint"}
    assert changed(resume=True) == {"--resume"}
    assert changed(device="meta") == {"the device"}
    assert {"the version of torch", "the version of deepspeed", "the source of maskreid_kernels"} < set(facts)


def test_sources_are_compared_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for name, text in (("one", "x = 1\n"), ("two", "x = 1\n"), ("three", "x = 2\n")):
        shutil.copytree(
            ROOT / "maskreid_dist" / "report", tmp_path / name, ignore=shutil.ignore_patterns("*.pyc")
        )
        (tmp_path / name / "__init__.py").write_text(text)
        digests.append(source_digest(import_module(name)))
        del sys.modules[name]
    assert digests[0] == digests[1] != digests[2]
