"""A rank that dies, hangs or meets an error of the system is named on every node, and soon all have left with
status 1."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from maskreid_dist.model.checkpoint import find_checkpoint, finished_checkpoints
from maskreid_dist.training import leaving
from maskreid_dist.training.environment import Place, free_port
from maskreid_dist.training.meeting import Meeting, PeersLost
from nodes import (
    GUARD_S,
    LAUNCHERS,
    PYTHONPATH,
    ROOT,
    Ended,
    check_left_in_time,
    record_left,
    run_nodes,
    start_nodes,
    wait_for,
    write_recipe,
)

HOST = socket.gethostname()
FAULTY = Path(__file__).with_name("faulty_training.py")
Record = Callable[[str, object], None]


def train(tmp_path: Path, fault: str, *overrides: str, launcher: str | None = None) -> list[Ended]:
    arguments: list[str | Path] = [write_recipe(tmp_path), "--runs", tmp_path / "runs"]
    for override in overrides:
        arguments += ["--set", override]
    folder = tmp_path if launcher else None
    return run_nodes([arguments] * 2, script=FAULTY, variables={"FAULT": fault}, launcher=folder)


def said(nodes: list[Ended]) -> list[str]:
    """What both nodes printed, the same."""
    assert nodes[0].errors == nodes[1].errors, nodes[0].output + nodes[1].output
    return nodes[0].errors


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_full_disk_of_one_rank(tmp_path: Path, launcher: str | None, record_property: Record) -> None:
    """Rank 1 cannot write its piece; the checkpoint of before is whole."""
    nodes = train(tmp_path, "disk 1 3", "engine.zero_stage=1", launcher=launcher)
    assert [node.status for node in nodes] == [1, 1], nodes[1].output
    (error,) = said(nodes)
    assert error.startswith(f"rank 1 on {HOST}: {tmp_path}/runs/tiny/checkpoints/step_00000004.partial: "), (
        error
    )
    assert not any("Traceback" in node.output for node in nodes)
    assert find_checkpoint(tmp_path / "runs" / "tiny")[0].step == 2
    check_left_in_time(nodes, record_property)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_is_named(tmp_path: Path, launcher: str | None, record_property: Record) -> None:
    nodes = train(tmp_path, "kill 1 3", launcher=launcher)
    assert nodes[0].status == 1 and nodes[1].status != 0
    (error,) = nodes[0].errors
    assert error.startswith(f"rank 1 on {HOST} left without a word, or is stopped (last heard of: ")
    assert error.endswith("); rank 0 was at: step 3, computing")
    assert "Traceback" not in nodes[0].output
    check_left_in_time(nodes, record_property)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_stopped_rank_is_named_when_the_timeout_ends(
    tmp_path: Path, launcher: str | None, record_property: Record
) -> None:
    nodes = train(tmp_path, "stop 1 3", launcher=launcher)
    assert [node.status for node in nodes] == [1, 1]
    (error,) = nodes[0].errors
    assert error.startswith(f"rank 1 on {HOST} left without a word, or is stopped (last heard of: ")
    assert error.endswith("); rank 0 was at: step 3, computing")
    assert f"rank 0 on {HOST}: the main thread waited here:" in nodes[0].output
    assert "in training_step" in nodes[0].output  # the stack of a live rank
    if launcher:  # a collective hung: no limit
        record_left(nodes[0].seconds, record_property)


@pytest.mark.faults
def test_a_rank_that_hangs_is_named_and_shows_its_stack(tmp_path: Path) -> None:
    nodes = train(tmp_path, "hang 1 3")
    assert [node.status for node in nodes] == [1, 1]
    at = "step 3, computing"
    for rank, node in enumerate(nodes):
        assert node.errors == [
            f"rank 1 on {HOST} has not arrived, the others waited in vain (it was at: {at}; its stacks are "
            f"in its log); rank {rank} was at: {at}"
        ]
    assert "in hang" in nodes[1].output and "in training_step" in nodes[0].output


@pytest.mark.faults
@pytest.mark.parametrize("launcher", [None, "deepspeed"])
def test_rank_0_that_is_killed_is_named(
    tmp_path: Path, launcher: str | None, record_property: Record
) -> None:
    nodes = train(tmp_path, "kill 0 3", launcher=launcher)
    assert nodes[0].status != 0 and nodes[1].status == 1
    assert nodes[1].errors == [f"rank 0 on {HOST} has left, or its machine is gone; its log says more"]
    assert "Traceback" not in nodes[1].output
    check_left_in_time(nodes, record_property)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "override", "words"),
    [
        ("gone 0 3", "seed=1", "rank 0 on {host}: {run}/"),
        ("worker 1 2", "data.workers=1", "rank 1 on {host}: a data worker died: DataLoader worker (pid"),
        ("defect 1 2", "seed=1", "rank 1 on {host}: KeyError: 'a defect' (the traceback is in its log)"),
    ],
)
def test_other_ends_of_one_rank(tmp_path: Path, fault: str, override: str, words: str) -> None:
    nodes = train(tmp_path, fault, override)
    assert [node.status for node in nodes] == [1, 1]
    (error,) = said(nodes)
    assert error.startswith(words.format(host=HOST, run=tmp_path / "runs" / "tiny"))
    assert ["Traceback" in node.output for node in nodes] == [False, "defect" in fault]


@pytest.mark.faults
def test_one_launcher_prints_once(tmp_path: Path) -> None:
    """Both ranks are of one machine, and share a terminal."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    command += ["--master_port", str(free_port()), str(FAULTY), str(write_recipe(tmp_path))]
    ended = subprocess.run(
        [*command, "--runs", str(tmp_path / "runs")],
        cwd=ROOT,
        env={**os.environ, "FAULT": "defect 0 3", "PYTHONPATH": PYTHONPATH},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=GUARD_S,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout
    lines = [line for line in ended.stdout.splitlines() if line.startswith("maskreid: error: ")]
    assert lines == [f"maskreid: error: rank 0 on {HOST}: KeyError: 'a defect' (the traceback is in its log)"]


def private_mount(options: str, folder: Path) -> list[str]:
    """A command for a process that sees a file system of its own at `folder`; skips where none can be
    mounted."""
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    return prefix


@pytest.mark.faults
def test_a_full_file_system(tmp_path: Path) -> None:
    """Rank 1's own disk, of 256 KB, is too small for a checkpoint: nobody commits one."""
    disks = [tmp_path / f"disk{node}" for node in range(2)]
    disks[1].mkdir()
    arguments: list[str | Path] = [write_recipe(tmp_path), "--set", "run.local_checkpoints=true", "--runs"]
    nodes = run_nodes(
        [[*arguments, disk] for disk in disks], prefixes={1: private_mount("size=256k", disks[1])}
    )
    assert [node.status for node in nodes] == [1, 1], nodes[1].output
    (error,) = said(nodes)
    assert error.startswith(f"rank 1 on {HOST}: {disks[1]}/tiny/checkpoints/step_00000002.partial"), error
    assert not any("Traceback" in node.output for node in nodes)
    assert not finished_checkpoints(disks[0] / "tiny" / "checkpoints")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "file"), [("full", "metrics.jsonl"), ("nearly-full", "checkpoints/step_00000004.partial")]
)
def test_a_file_system_that_fills(tmp_path: Path, fault: str, file: str) -> None:
    """The log's line of step 3 does not fit, or the second save does not; the first one is whole."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    *unshare, script, _ = private_mount("size=64m", disk)
    script = f'{script.replace("exec ", "")}; status=$?; cp -r "$0" {kept}; exit $status'
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port"]
    command += [str(free_port()), str(FAULTY), str(write_recipe(tmp_path)), "--runs", str(disk)]
    ended = subprocess.run(
        [*unshare, script, str(disk), *command],
        cwd=ROOT,
        env={**os.environ, "FAULT": f"{fault} 0 3", "PYTHONPATH": PYTHONPATH},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=GUARD_S,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout
    (error,) = [line for line in ended.stdout.splitlines() if line.startswith("maskreid: error: ")]
    assert error.startswith(f"maskreid: error: rank 0 on {HOST}: {disk}/tiny/{file}"), error
    assert "Traceback" not in ended.stdout
    assert find_checkpoint(kept / "tiny")[0].step == 2


@pytest.mark.faults
def test_no_shared_memory(tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        write_recipe(tmp_path),
        "--runs",
        tmp_path / "runs",
        "--set",
        "data.workers=1",
    ]
    nodes = run_nodes([arguments] * 2, prefixes={1: private_mount("ro", Path("/dev/shm"))})
    assert [node.status for node in nodes] == [1, 1], nodes[1].output
    assert said(nodes) == [f"rank 1 on {HOST}: /dev/shm: Read-only file system"]


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """One second is enough: nothing there would ever answer."""
    impatient = ("--set", "engine.collective_timeout_s=1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments: list[str | Path] = [write_recipe(tmp_path), "--runs", tmp_path / "runs", *impatient]
        nodes = run_nodes([arguments] * 2, variables={"MASTER_PORT": port})
    assert [node.status for node in nodes] == [1, 1]
    assert nodes[0].errors == [
        f"rank 0 on {HOST}: 127.0.0.1:{port}: the port is taken; give the launcher another (--master_port)"
    ]
    assert nodes[1].errors == [
        f"rank 1 on {HOST}: 127.0.0.1:{port}: rank 0 does not answer there within 1 s; see its log, "
        "and MASTER_ADDR and MASTER_PORT"
    ]
    assert not any("Traceback" in node.output for node in nodes)


def test_a_rank_that_never_comes_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By rank 0, in this process; as processes it is among `make faults`."""
    monkeypatch.setattr(leaving, "STILL_S", 0.1)
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    meeting = Meeting(Place(0, 0, 2), store, 0.1)
    with pytest.raises(PeersLost) as lost:
        meeting.join()
    assert leaving.leave_together(meeting, lost.value) == 1
    assert "maskreid: error: rank 1 did not come within 0.1 s\n" in capsys.readouterr().err


@pytest.mark.faults
def test_a_process_that_never_comes_is_named(tmp_path: Path) -> None:
    arguments: list[str | Path] = [write_recipe(tmp_path), "--runs", tmp_path / "runs"]
    nodes = start_nodes([[*arguments, "--set", "engine.collective_timeout_s=15"]] * 2)
    os.killpg(nodes[1].pid, signal.SIGKILL)
    first, _ = wait_for(nodes)
    assert first.status == 1
    assert first.errors == ["rank 1 did not come within 15 s"]
