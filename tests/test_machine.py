"""Threads of a rank from the processors that its launcher leaves it; the number of ranks a recipe is for."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from maskreid_dist.errors import UserError
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place, free_port
from maskreid_dist.training.machine import network_here, processors_here, threads_of_rank
from maskreid_dist.training.meeting import Meeting, Member
from maskreid_dist.training.preparing import check_world
from nodes import GUARD_S, PYTHONPATH, ROOT, write_recipe

MACHINE = 0xFF  # eight processors


@pytest.mark.parametrize(
    ("own", "on_machine", "threads"),
    [
        (MACHINE, [MACHINE], 8),
        (MACHINE, [MACHINE] * 2, 4),  # deepspeed, torchrun: all may run anywhere
        (MACHINE, [MACHINE] * 3, 2),
        (MACHINE, [MACHINE] * 20, 1),
        (0x0F, [0x0F, 0xF0], 4),  # srun --cpu-bind, deepspeed --bind_cores_to_rank: each has its own
        (0x0F, [0x0F] * 2, 2),  # a launcher in a cpuset of four processors
        (0x0F, [0x0F, MACHINE], 2),  # half of each of four: one bound rank, one that is not
        (MACHINE, [0x0F, MACHINE], 6),
        (0b1, [0b1], 1),
    ],
)
def test_a_processor_is_shared_by_the_ranks_that_may_run_on_it(
    own: int, on_machine: list[int], threads: int
) -> None:
    assert threads_of_rank({}, own, on_machine) == threads
    assert threads_of_rank({"OMP_NUM_THREADS": ""}, own, on_machine) == threads
    assert threads_of_rank({"OMP_NUM_THREADS": "3"}, own, on_machine) is None


@given(st.lists(st.integers(1, 2**70 - 1), min_size=1, max_size=9))
def test_ranks_never_have_more_threads_than_processors(masks: list[int]) -> None:
    threads = [threads_of_rank({}, own, masks) for own in masks]
    processors = 0
    for mask in masks:
        processors |= mask
    more_than_one = [count for count in threads if count and count > 1]
    assert all(count is not None and count >= 1 for count in threads)
    assert sum(more_than_one) <= processors.bit_count()


def test_processors_are_those_of_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    os.sched_setaffinity(0, {one})
    try:
        assert processors_here() == 1 << one
    finally:
        os.sched_setaffinity(0, before)
    assert processors_here().bit_count() == len(before)


def test_members_of_a_machine_are_known_by_its_boot() -> None:
    store = TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)
    own = [Member("a", 0, 1 << 90, "boot1/1"), Member("b", 0, 2, "boot1/2"), Member("a", 0, 4, "boot2/1")]

    def beside(rank: int) -> list[Member]:
        meeting = Meeting(Place(rank, 0, 3), store.clone(), 60.0)  # type: ignore[attr-defined]
        meeting.join(own[rank])
        assert meeting.members == own
        return meeting.beside()

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(beside, range(3))) == [own[:2], own[:2], own[2:]]
    here = Member.here(Place(0, 5, 6))
    assert here == Member(socket.gethostname(), 5, processors_here(), network_here())


def test_a_recipe_may_say_how_many_ranks_it_is_for(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    check_world(load_recipe(recipe), 1)
    six = load_recipe(recipe, ["engine.world=6"])
    check_world(six, 6)
    with pytest.raises(
        UserError, match=r"^8 ranks were started, .*engine\.world = 6; see the launcher's hosts"
    ):
        check_world(six, 8)


def test_a_missing_hostfile_is_an_error(tmp_path: Path) -> None:
    """deepspeed takes the machine that it runs on; the recipe says that this is too few."""
    recipe = write_recipe(tmp_path)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(tmp_path / "nowhere")]
    command += ["--num_gpus", "1", "--master_port", str(free_port()), "launch/train.py", str(recipe)]
    command += ["--runs", str(tmp_path / "runs"), "--set", "engine.world=6"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=GUARD_S, check=False
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("maskreid: error: ")]
    assert lines == [
        "maskreid: error: 1 rank was started, the recipe expects engine.world = 6; see the launcher's hosts "
        "and ranks per host; deepspeed takes this machine alone where its --hostfile is missing"
    ]
    assert not (tmp_path / "runs").exists()
