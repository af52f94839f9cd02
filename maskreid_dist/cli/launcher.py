"""Start a training through a launcher on this machine, and stop it with a save."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from maskreid_dist.run_directory import STOP
from maskreid_dist.terminal import say
from maskreid_dist.training.environment import free_port

# Of this package, and no launch/train.py: the folder that a user stands in may be somebody else's.
SCRIPT = Path(__file__).with_name("train.py").resolve()
ASK_AGAIN_S = 1.0


def launch_training(
    recipe: Path, overrides: Sequence[str], runs: Path, run: Path, ranks: int, output: int | None = None
) -> int:
    """`deepspeed --num_gpus RANKS .../train.py RECIPE --resume`; returns how the training ended
    (maskreid_dist.exit_status). output: the file descriptor of its standard output, None: this process's."""
    import torch

    from maskreid_dist.training.ending import status_of

    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)),
        *("--master_port", str(free_port()), "--log_level", "critical"),
        *(str(SCRIPT), str(recipe), "--resume", "--runs", str(runs)),
    ]
    for override in overrides:
        command += ["--set", override]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # no ./deepspeed in place of the installed one
    if not torch.cuda.is_available():
        # Or DeepSpeed warns in every process that it found no GPU.
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return status_of(run, Launcher(run).start(command, environment, output))


class Launcher:
    """Runs a launcher's command, and passes a request to stop on to the training.

    Ctrl-C, SIGTERM and SIGHUP ask the training to finish its step and save, by the file `stop` in the run
    directory: the launcher itself would kill its workers after a while. A second one kills it.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.asked = False  # to stop
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: int | None = None) -> int:
        """Run the command until it ends; returns its own exit status. output: as in `launch_training`."""
        from maskreid_dist.training.ending import begin
        from maskreid_dist.training.run_folder import LAUNCHED

        environment = {**environment, LAUNCHED: str(time.time())}
        stop = self.run / STOP
        stop.unlink(missing_ok=True)
        begin(self.run)
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._ask_to_stop) for number in signals}
        try:
            # In a session of its own: a Ctrl-C at the terminal reaches this process alone.
            self._process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=output)
            while True:
                try:
                    status = self._process.wait(ASK_AGAIN_S)
                    break
                except subprocess.TimeoutExpired:
                    if self.asked and not stop.exists():  # the training began later, and cleared it away
                        self._touch()
            if self.asked:
                stop.unlink(missing_ok=True)
            return status
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _touch(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)  # the training makes it once it has checked its input
        (self.run / STOP).touch()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked and self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            return
        self.asked = True
        self._touch()
        with suppress(OSError):  # a terminal that has closed
            say("stopping: the step is finished and saved first (again to kill)", file=sys.stderr, flush=True)
