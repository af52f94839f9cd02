"""How a training ended, for whoever starts it again: launchers turn the ranks' exit statuses into their own.

`deepspeed` passes a rank's status on, but ends with 0 when its second process is killed and with 1 when
that is told to stop; `torchrun` says 1 for all but 0, and takes a stop for a failure, which it would start
again.
"""

import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from maskreid_dist import exit_status
from maskreid_dist.run_directory import STATUS
from maskreid_dist.training.environment import Place
from maskreid_dist.training.launcher_watch import ancestors_of
from maskreid_shards.atomic import write_atomically
from maskreid_shards.opening import read_json


def begin(run: Path) -> None:
    """Forget how the training of before ended. Rank 0, when it holds the run directory."""
    (run / STATUS).unlink(missing_ok=True)


def end(run: Path, status: int) -> None:
    """Write down the exit status of all ranks. Rank 0; a disk that is full keeps none, which means 1."""
    with suppress(OSError):
        write_atomically(run / STATUS, json.dumps({"status": status}).encode() + b"\n")


def status_of(run: Path, launcher_status: int) -> int:
    """How a training ended whose launcher has ended: by what rank 0 wrote down; else, of the launcher's own
    status only 2 and 75 mean what they say, and everything else, 0 too, that the ranks did not come to an
    end."""
    try:
        return int(read_json(run / STATUS)["status"])
    except (OSError, ValueError, KeyError, TypeError):
        own = (exit_status.NEVER_AGAIN, exit_status.STOPPED)
        return launcher_status if launcher_status in own else exit_status.START_AGAIN


def stop_agent(place: Place, environment: Mapping[str, str] = os.environ) -> None:
    """Keep `torchrun --max-restarts` from starting ranks again that were asked to stop: its agent is told
    to stop too, and ends with 1. Every rank calls it, when its save is done; the first of a machine has the
    agent to tell."""
    left = int(environment.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(
        environment.get("TORCHELASTIC_RESTART_COUNT", 0)
    )
    if place.local_rank or left <= 0:
        return
    ancestors = ancestors_of(os.getpid())
    agent = next((ancestor for ancestor in ancestors if ancestor.launches), None) or next(
        iter(ancestors), None
    )
    if agent:
        with suppress(psutil.Error):
            psutil.Process(agent.pid).send_signal(signal.SIGTERM)
