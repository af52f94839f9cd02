"""A training whose launcher, terminal or rank is killed: it saves and leaves, or dies, and nothing of it
stays."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from held_training import HELD
from maskreid_dist.model.checkpoint import find_checkpoint
from maskreid_dist.training import run_folder
from maskreid_dist.training.ending import status_of
from maskreid_dist.training.environment import free_port
from maskreid_dist.training.launcher_watch import Ancestor, launched_by, orphaned
from maskreid_dist.training.run_folder import lock_run_directory
from nodes import GUARD_S, PYTHONPATH, ROOT, write_recipe
from test_demo import read_until
from test_demo import start as start_demo

GONE = "its launcher has gone: the step is finished and saved first"
STUCK = "its launcher has gone, and the step and its save take longer than"
SCRIPT = str(Path(__file__).with_name("held_training.py"))


class Held:
    """A training that waits after its third step; its output ends when the last of its processes has."""

    def __init__(self, folder: Path, launcher: Sequence[str], output: int = subprocess.PIPE) -> None:
        os.mkfifo(folder / "release")
        self.gate = os.open(folder / "release", os.O_RDWR)  # also for reading: opening it waits for nobody
        recipe = str(write_recipe(folder))
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= {"PYTHONPATH": PYTHONPATH, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, SCRIPT, recipe, "--runs", str(folder)]
        command += [
            "--set",
            "data.workers=1",
            "--set",
            "run.checkpoint_every=100",
            "--set",
            "optimizer.steps=6",
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=output if output != subprocess.PIPE else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def read_until(self, words: str) -> str:
        said = ""
        assert self.process.stdout
        for line in self.process.stdout:
            said += line
            if words in line:
                return said
        pytest.fail(said)

    def go_on(self) -> str:
        """Let it go on, and hear it until nothing of it is left."""
        os.write(self.gate, b"x")
        said, _ = self.process.communicate()
        os.close(self.gate)
        return said or ""


def launcher(kind: str) -> list[str]:
    port = str(free_port())
    if kind == "deepspeed":
        return ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port]
    return ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        ("deepspeed", 0),
        pytest.param("deepspeed", 1, marks=pytest.mark.faults),
        pytest.param("torchrun", 0, marks=pytest.mark.faults),
    ],
)
def test_ranks_save_and_leave_when_a_launcher_is_killed(tmp_path: Path, kind: str, depth: int) -> None:
    """`deepspeed`, its launch.py, or torchrun's agent, which has the ranks' store too."""
    held = Held(tmp_path, launcher(kind))
    said = held.read_until(HELD)
    victim = psutil.Process(held.process.pid)
    for _ in range(depth):
        (victim,) = victim.children()
    victim.kill()
    said += held.read_until(f"rank 0 on {socket.gethostname()}: {GONE}")  # which votes on step 4 last
    said += held.go_on()
    assert "stopped on request after step 4 of 6, saved" in said
    assert find_checkpoint(tmp_path / "tiny")[0].step == 4, said
    assert "Traceback" not in said, said


def test_a_signal_to_all_processes_leaves_the_data_workers_to_their_rank(tmp_path: Path) -> None:
    held = Held(tmp_path, ["-u"])
    held.read_until(HELD)
    os.killpg(held.process.pid, signal.SIGTERM)
    said = held.go_on()
    assert held.process.returncode == 75, said
    assert find_checkpoint(tmp_path / "tiny")[0].step == 4


@pytest.mark.parametrize(("hangup", "status", "step"), [("SIG_DFL", 75, 4), ("SIG_IGN", 0, 6)])
def test_a_terminal_that_closes(hangup: str, status: int, step: int, tmp_path: Path) -> None:
    """It asks for a save; with SIGHUP ignored (nohup) the training goes on. Nothing can be printed from there
    on."""
    master, slave = pty.openpty()
    held = Held(tmp_path, ["-c", TERMINAL, hangup], slave)
    os.close(slave)
    said = b""
    while HELD.encode() not in said:
        said += os.read(master, 4096)
    os.close(master)
    held.go_on()
    assert held.process.returncode == status
    assert find_checkpoint(tmp_path / "tiny")[0].step == step


# As a login does: the terminal is the session's.
TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# What a launcher starts: it says what it is asked, and that its launcher has gone. "stuck": it trains, and
# its step never ends.
RANK = """
import os, sys, threading
from maskreid_dist.training import launcher_watch
asked, said = threading.Event(), threading.Event()
watch = launcher_watch.LauncherWatch(3)
say = watch._say
watch._say = lambda text: (say(text), said.set())
if sys.argv[1] == "trains":
    watch.ask = asked.set
elif sys.argv[1] == "stuck":
    launcher_watch.LEAVE_S = 0.5
    watch.ask = lambda: None
watch.start()
print("ready", flush=True)
asked.wait()
said.wait()
print("asked", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("state", ["trains", "starts", "stuck"])
def test_the_outermost_launcher_is_watched_through_a_script(tmp_path: Path, state: str) -> None:
    """A program called torchrun, a shell script that it runs, and a rank. The script outlives its launcher,
    and says how the rank left."""
    torchrun, script = tmp_path / "torchrun", tmp_path / "script.sh"
    script.write_text(f"{sys.executable} -c '{RANK}' {state}\necho left with $?\n")
    torchrun.write_text(f"sh {script}\ntrue\n")
    process = subprocess.Popen(
        ["sh", torchrun],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.kill()
    said, _ = process.communicate(timeout=GUARD_S)  # until the rank has left
    if state == "trains":
        assert GONE in said and said.endswith("asked\nleft with 0\n")
        return
    if state == "stuck":
        assert GONE in said and f"{STUCK} 0.5 s" in said
    else:
        assert "its launcher has gone, before the training began; it leaves" in said
    assert said.endswith("left with 1\n")


@pytest.mark.faults
def test_ranks_in_a_step_that_never_ends_leave_without_their_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is held after step 3, the other waits for it in step 4; nobody lets them go on."""
    monkeypatch.setenv("LEAVE_S", "2")
    held = Held(tmp_path, launcher("deepspeed"))
    held.read_until(HELD)
    held.process.kill()
    said, _ = held.process.communicate(timeout=GUARD_S)
    os.close(held.gate)
    assert f"{STUCK} 2 s" in said and "Traceback" not in said, said  # the other may have found it gone
    assert list((tmp_path / "tiny").glob("checkpoints/*")) == []
    again = lock_run_directory(tmp_path / "tiny")
    assert not isinstance(again, str)  # nobody trains there any more
    again.close()


def ancestor(words: str, pid: int = 7, name: str = "python") -> Ancestor:
    return Ancestor(pid, name, tuple(words.split()))


@pytest.mark.parametrize(
    ("words", "launches"),
    [
        ("/usr/bin/python3 /venv/bin/deepspeed --num_gpus 2 train.py", True),
        ("python -u -m deepspeed.launcher.launch --world_info=x", True),
        ("/venv/bin/python /venv/bin/torchrun train.py", True),
        ("python -m torch.distributed.run train.py", True),
        ("python -m maskreid_dist supervise -- deepspeed", True),
        ("slurmstepd: [7.0]", True),
        ("sshd: user@notty", True),
        ("sshd: user@pts/3", False),
        ("-bash", False),
        ("bash /home/maskreid/run.sh", False),
        ("python -m pytest tests", False),
        ("vim launch/train.py", False),
    ],
)
def test_launchers_are_known_by_their_commands(words: str, launches: bool) -> None:
    assert ancestor(words).launches is launches


def test_which_ancestors_are_watched() -> None:
    launch, runner = ancestor("python -u -m deepspeed.launcher.launch"), ancestor("python /bin/deepspeed x")
    shell, login, init = ancestor("bash", 5), ancestor("sshd: user@pts/3", 4), ancestor("/sbin/init", 1)
    above = [launch, runner, shell, login, init]
    assert launched_by(above, {}) == [launch, runner]
    assert launched_by([shell, login, init], {}) == []  # `python launch/train.py &`: it outlives its shell
    assert launched_by([launch, shell, runner, shell, init], {}) == [launch, shell, runner]
    accelerate = ancestor("accelerate launch")
    assert launched_by([accelerate, shell, init], {"TORCHELASTIC_RUN_ID": "x"}) == [accelerate]

    assert not orphaned([launch, runner], above, {"CROSS_RANK": "0"})
    assert orphaned([init], [init], {"CROSS_RANK": "0"})  # launch.py went before the rank looked
    assert orphaned([launch], [launch, init], {"CROSS_RANK": "0"})  # `deepspeed` did
    assert not orphaned([launch], [launch, shell, login, init], {"CROSS_RANK": "0"})  # over ssh
    first = ancestor("python /bin/torchrun", 1)  # in a container
    assert not orphaned([first], [first], {"TORCHELASTIC_RUN_ID": "x"})


def test_a_training_that_still_saves_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lock_run_directory(tmp_path)
    assert not isinstance(held, str)
    monkeypatch.setattr(run_folder, "LEFT_S", 0.0)
    assert lock_run_directory(tmp_path) == f"process {os.getpid()} is training here; wait for it or stop it"
    monkeypatch.setattr(run_folder, "LEFT_S", 1000.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: held.close())  # it leaves while it is waited for
    after = lock_run_directory(tmp_path)
    assert not isinstance(after, str)
    after.close()


@pytest.mark.faults
def test_torchrun_starts_again_after_a_kill_and_not_after_a_stop(tmp_path: Path) -> None:
    """Rank 1 dies at its third step of the first round alone; a stop is passed on to the agent."""
    faulty = str(Path(__file__).with_name("faulty_training.py"))
    recipe = str(write_recipe(tmp_path))
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "FAULT": "kill-once 1 3"}
    environment[run_folder.LAUNCHED] = "0"  # the stop request is not older than that
    command = [sys.executable, *launcher("torchrun"), "--max-restarts", "2", faulty, recipe]
    command += ["--runs", str(tmp_path), "--resume"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=ROOT, env=environment, text=True, capture_output=True)

    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert "continuing from" in ended.stdout and "step_00000002" in ended.stdout
    assert status_of(tmp_path / "tiny", 1) == 0
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "stop").touch()
    ended = run("--set", "name=stopped")
    assert ended.returncode == 1
    assert status_of(tmp_path / "stopped", 1) == 75
    assert find_checkpoint(tmp_path / "stopped")[0].step == 1


@pytest.mark.faults
def test_a_demo_without_its_launcher_reports_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "release")
    gate = os.open(tmp_path / "release", os.O_RDWR)
    demo = start_demo([str(Path(__file__).with_name("held_demo.py"))], tmp_path)
    said = read_until(HELD, demo)
    (runner,) = (p for p in psutil.Process(demo.pid).children() if "deepspeed.launcher.runner" in p.cmdline())
    (launch,) = runner.children()
    launch.kill()  # `deepspeed` ends with 0
    said += read_until(GONE, demo)
    os.write(gate, b"x")
    said += demo.communicate()[0]
    os.close(gate)
    assert demo.returncode in (1, 75), said  # 75 where its ranks had left before it looked
    assert "the same command continues" in said and "figures:" not in said
