"""`maskreid supervise`: when a training is started again, when not, and how a stop reaches it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from maskreid_dist.cli.supervise import Supervisor, run_of, with_port
from maskreid_dist.errors import UserError
from maskreid_dist.training.ending import begin, end, status_of
from nodes import PYTHONPATH, ROOT, write_recipe
from program import run as program


def supervise(run: Path, script: str, failures: int = 3) -> tuple[int, list[float], int]:
    """Status, pauses, starts. The script stands for a launcher and its ranks; `n` counts its starts, from
    1."""
    run.mkdir()
    count = run / "starts"
    lines = f'echo >> "{count}"; n=$(wc -l < "{count}"); cd "{run}"\n{script}\n'
    pauses: list[float] = []
    status = Supervisor(["sh", "-c", lines], run, failures, 1.0, pauses.append).supervise()
    return status, pauses, len(count.read_text().splitlines())


def says(status: int) -> str:
    return f"""echo '{{"status": {status}}}' > status.json"""


SAVE = "mkdir -p checkpoints/step_0000000$n"


@pytest.mark.parametrize(
    ("script", "ended", "pauses", "starts"),
    [
        (says(0), 0, [], 1),
        (f"{says(2)}; exit 1", 2, [], 1),  # torchrun answers 1 for all but 0
        ("exit 2", 2, [], 1),  # before there was a run directory
        ("exit 1", 1, [1, 2], 3),
        ("exit 0", 1, [1, 2], 3),  # `deepspeed` whose launch.py was killed
        ("kill -9 $$", 1, [1, 2], 3),
        (f"{SAVE}; [ $n -lt 5 ] && exit 1; {says(0)}", 0, [0, 0, 0, 0], 5),
        (f"{SAVE}; [ $n -lt 3 ] && {says(75)} && exit 75; {says(0)}", 0, [0, 0], 3),
        (f"[ $n -eq 2 ] && {SAVE}; exit 1", 1, [1, 0, 1, 2], 5),  # progress is a new beginning
    ],
)
def test_when_a_training_is_started_again(
    tmp_path: Path, script: str, ended: int, pauses: list[float], starts: int
) -> None:
    assert supervise(tmp_path / "run", script) == (ended, pauses, starts)


def test_a_stop_is_passed_on_and_is_no_failure(tmp_path: Path) -> None:
    """SIGTERM to the supervisor: it asks by the file, also when the training clears one away as it begins."""
    wait = "while [ ! -e stop ]; do sleep 0.02; done"
    script = f"kill -TERM $PPID; {wait}; rm stop; {wait}; {SAVE}; {says(75)}; exit 1"
    assert supervise(tmp_path / "run", script) == (75, [], 1)
    assert not (tmp_path / "run" / "stop").exists()


def test_a_second_signal_kills(tmp_path: Path) -> None:
    wait = "while [ ! -e stop ]; do sleep 0.02; done"
    assert supervise(tmp_path / "run", f"kill -TERM $PPID; {wait}; kill -TERM $PPID; sleep 1000") == (
        1,
        [],
        1,
    )


def test_the_command_resumes_with_a_port_of_its_own(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    said = tmp_path / "said"
    script = tmp_path / "torchrun"
    script.write_text(
        f"""echo "$@" > {said}; echo '{{"status": 0}}' > {tmp_path}/tiny/status.json; mkdir -p
        {tmp_path}/tiny"""
    )
    (tmp_path / "tiny").mkdir()
    status, output = program("supervise", "--", "sh", script, "train.py", recipe, "--runs", tmp_path)
    assert status == 0, output
    words = said.read_text().split()
    assert words[0] == "--master_port" and 1024 <= int(words[1]) <= 65535
    assert words[2:] == ["train.py", str(recipe), "--runs", str(tmp_path), "--resume"]


def test_who_gets_a_port() -> None:
    deepspeed = with_port(["deepspeed", "--num_gpus", "2", "train.py"])
    assert deepspeed[:2] == ["deepspeed", "--master_port"] and deepspeed[3:] == [
        "--num_gpus",
        "2",
        "train.py",
    ]
    module = with_port(["python", "-m", "torch.distributed.run", "train.py"])
    assert module[:4] == ["python", "-m", "torch.distributed.run", "--master_port"]
    for command in (
        ["deepspeed", "--master_port=29501", "train.py"],
        ["torchrun", "--rdzv-endpoint", "node0:29400", "train.py"],
        ["torchrun", "--standalone", "train.py"],
        ["deepspeed", "--hostfile", "hosts", "--no_ssh", "train.py"],
        ["python", "launch/train.py"],
    ):
        assert with_port(command) == command


def test_the_run_directory_is_the_command_s(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path))
    assert run_of(["deepspeed", "train.py", recipe]) == Path("runs/tiny")
    assert run_of(["x", recipe, "--runs=there", "--set", "name=other"]) == Path("there/other")
    with pytest.raises(UserError, match="name the run directory: --run"):
        run_of(["x", "y"])


def test_status_of_a_run(tmp_path: Path) -> None:
    assert [status_of(tmp_path, own) for own in (0, 1, 2, 75, 137, -9, 247)] == [1, 1, 2, 75, 1, 1, 1]
    end(tmp_path, 75)
    assert status_of(tmp_path, 1) == 75
    (tmp_path / "status.json").write_text("[]")
    assert status_of(tmp_path, 0) == 1
    begin(tmp_path)
    assert not (tmp_path / "status.json").exists()


AGENT = """
import sys
from maskreid_dist.training.ending import stop_agent
from maskreid_dist.training.environment import Place
place = Place(0, int(sys.argv[1]), 1)
stop_agent(place, {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": sys.argv[2]})
print("told")
"""


@pytest.mark.parametrize(("local_rank", "restart", "status"), [(0, 2, -15), (0, 3, 0), (1, 0, 0)])
def test_the_agent_is_told_of_a_stop(tmp_path: Path, local_rank: int, restart: int, status: int) -> None:
    """By the first rank of a machine, where the agent would start it again."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f"{sys.executable} -c '{AGENT}' {local_rank} {restart}\ntrue\n")
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "shards"))
    environment = {**os.environ, "PYTHONPATH": paths}
    ended = subprocess.run(["sh", torchrun], env=environment, check=False, stdout=subprocess.PIPE)
    assert ended.returncode == status
    assert ended.stdout == b"told\n"


@pytest.mark.faults
def test_a_real_launcher_whose_rank_is_killed_at_the_same_step_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`deepspeed`, rank 0 killed at its third step: the first start brings a checkpoint, the next two none.
    Then one that nobody kills ends the same run."""
    starts: list[list[str]] = []

    def noted(words: Sequence[str]) -> list[str]:
        starts.append(with_port(words))
        return starts[-1]

    monkeypatch.setattr("maskreid_dist.cli.supervise.with_port", noted)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    script = ROOT / "tests" / "faulty_training.py"
    launcher = ("-m", "deepspeed.launcher.runner", "--num_gpus", "1")
    command = [sys.executable, *launcher, script, write_recipe(tmp_path), "--runs", tmp_path]

    def supervised(fault: str) -> tuple[int, str]:
        monkeypatch.setenv("FAULT", fault)
        options = ("--failures", 2, "--pause", 0.25)
        status, output = program("supervise", *options, "--", *command)
        return status, output + "".join(capfd.readouterr())

    status, output = supervised("kill 0 3")
    assert status == 1, output
    assert "2 steps are saved; starting again in 0 s" in output
    assert "2 steps are saved; starting again in 0.25 s" in output
    assert "no new checkpoint in 2 starts: giving up" in output
    assert output.count("continuing from") == 2
    assert len(starts) == 3 and all("--master_port" in words for words in starts)  # asked for at each start
    status, output = supervised("kill 0 99")
    assert (status, len(starts)) == (0, 4), output
    assert "step_00000002" in output and status_of(tmp_path / "tiny", 1) == 0
