"""`maskreid supervise -- COMMAND`: starts a training again until it is done, where no scheduler does."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated

import typer

from maskreid_dist import exit_status
from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.launcher import Launcher
from maskreid_dist.errors import UserError
from maskreid_dist.run_directory import CHECKPOINTS
from maskreid_dist.terminal import Terminal

LONGEST_PAUSE_S = 60.0
# After one of these words comes the launcher's option for the port.
PROGRAMS = {"deepspeed", "torchrun"}
MODULES = {"deepspeed.launcher.runner", "torch.distributed.run"}
# Ranks of several launchers meet at one port, which they must be told alike.
PORT_OPTIONS = (
    "master_port",
    "master-port",
    "rdzv_endpoint",
    "rdzv-endpoint",
    "standalone",
    "no_ssh",
    "nnodes",
)


@one_line_errors
def supervise(
    command: Annotated[
        list[str], typer.Argument(help="deepspeed, torchrun or python, with its options.", show_default=False)
    ],
    run: Annotated[
        Path | None, typer.Option(help="The run directory. Default: by the command's recipe and --runs.")
    ] = None,
    failures: Annotated[
        int, typer.Option(min=1, help="Give up after as many in a row without a new checkpoint.")
    ] = 3,
    pause: Annotated[
        float, typer.Option(min=0, help="Seconds after the first failure; doubled after each further one.")
    ] = 1.0,
) -> None:
    """Start a training again, with --resume and a fresh port, until it is done.

    Ends with the training's own status when that is 0 or 2, with 75 when it was told to stop (Ctrl-C,
    SIGTERM, SIGHUP: the training saves first), and with 1 when it gives up.
    """
    words = command if "--resume" in command else [*command, "--resume"]
    raise typer.Exit(Supervisor(words, run or run_of(command), failures, pause).supervise())


@dataclass
class Supervisor:
    """Starts `command` again and again; `pause` waits that many seconds, or until it is told to stop."""

    command: Sequence[str]
    run: Path
    failures: int
    pause_s: float
    sleep: Callable[[float], None] = time.sleep

    def supervise(self) -> int:
        """Returns the exit status."""
        from maskreid_dist.training.ending import status_of

        console = Terminal(stderr=True)
        launcher = Launcher(self.run)
        failed = 0
        while True:
            before = newest_step(self.run)
            started = launcher.start(with_port(self.command), os.environ)
            status = status_of(self.run, started)
            after = newest_step(self.run)
            if status in (exit_status.DONE, exit_status.NEVER_AGAIN):
                return status
            if launcher.asked:
                return exit_status.STOPPED if status == exit_status.STOPPED else exit_status.START_AGAIN
            failed = 0 if after > before else failed + 1
            said = f"the training ended with {status} (its launcher with {started}), {after} steps are saved"
            if failed >= self.failures:
                console.print(
                    f"supervise: {said}; no new checkpoint in {failed} starts: giving up", soft_wrap=True
                )
                return exit_status.START_AGAIN
            pause_s = 0.0 if failed == 0 else min(self.pause_s * 2 ** (failed - 1), LONGEST_PAUSE_S)
            console.print(f"supervise: {said}; starting again in {pause_s:g} s", soft_wrap=True)
            self.sleep(pause_s)


def newest_step(run: Path) -> int:
    """Steps in the newest finished checkpoint of a run directory, -1 without one."""
    from maskreid_dist.model.checkpoint import finished_checkpoints

    finished = finished_checkpoints(run / CHECKPOINTS)
    return int(finished[-1].name.removeprefix("step_")) if finished else -1


def with_port(command: Sequence[str]) -> list[str]:
    """The command with a free port for its launcher, which may not get the one of before at once; as it is
    where it names one, where several launchers must agree on it, or where there is no launcher."""
    from maskreid_dist.training.environment import free_port

    words = list(command)
    for place, word in enumerate(words[:5]):
        module = place > 0 and words[place - 1] == "-m" and word in MODULES
        if module or PurePath(word).name in PROGRAMS:
            options = [option.lstrip("-").partition("=")[0] for option in words if option.startswith("-")]
            if any(option in PORT_OPTIONS for option in options):
                return words
            return [*words[: place + 1], "--master_port", str(free_port()), *words[place + 1 :]]
    return words


def run_of(command: Sequence[str]) -> Path:
    """The run directory of a training's command. Raises UserError: it has no recipe, or a wrong one."""
    from maskreid_dist.recipe import load_recipe

    recipe = next((Path(word) for word in command if word.endswith(".toml")), None)
    if recipe is None:
        raise UserError(
            f"no recipe (*.toml) in {' '.join(command)!r}; name the run directory: --run runs/NAME"
        )
    runs, overrides = Path("runs"), []
    options = iter(command)
    for word in options:
        name, given, value = word.partition("=")
        if name in ("--runs", "--set"):
            value = value if given else next(options, "")
            runs = Path(value) if name == "--runs" else runs
            overrides += [value] if name == "--set" else []
    return runs / load_recipe(recipe, overrides).name
