"""Start a training through the `deepspeed` launcher on this machine, and stop it with a save."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from maskreid_dist.errors import UserError
from maskreid_dist.run_directory import STOP
from maskreid_dist.training.environment import free_port
from maskreid_dist.training.run_folder import LAUNCHED

SCRIPT = Path("launch/train.py")


def launch_training(recipe: Path, overrides: Sequence[str], runs: Path, run: Path, ranks: int) -> int:
    """`deepspeed --num_gpus RANKS launch/train.py RECIPE --resume`; returns its
    exit status, 75 when it was stopped.

    Ctrl-C, SIGTERM and SIGHUP ask the training to finish its step and save, by the file `stop` in the run
    directory: the launcher itself would kill its workers after a while. A second one kills it.
    """
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT}: not here; run this in a checkout of the repository")
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)),
        *("--master_port", str(free_port()), "--log_level", "critical"),
        *(str(SCRIPT), str(recipe), "--resume", "--runs", str(runs)),
    ]
    for override in overrides:
        command += ["--set", override]
    stop = run / STOP
    stop.unlink(missing_ok=True)
    environment = {**os.environ, LAUNCHED: str(time.time())}
    if not torch.cuda.is_available():
        # Or DeepSpeed warns in every process that it found no GPU.
        environment.setdefault("DS_ACCELERATOR", "cpu")
    process: subprocess.Popen[bytes] | None = None

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        if stop.exists() and process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            return
        run.mkdir(parents=True, exist_ok=True)  # the training makes it once it has checked its input
        stop.touch()
        print("stopping: the step is finished and saved first (again to kill)", file=sys.stderr, flush=True)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, ask_to_stop) for number in signals}
    try:
        # In a session of its own: a Ctrl-C at the terminal reaches this process alone.
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
