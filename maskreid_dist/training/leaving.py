"""How ranks leave together: whatever ends one of them is one line on rank 0's terminal, and soon all have left.

A rank that fails says its last words in the store and closes its connections, which ends the collective that
others wait in. Everybody then reads everybody's words; the first rank of each machine prints them.
"""

import json
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from maskreid_dist import exit_status
from maskreid_dist.errors import TrainingError, UserError
from maskreid_dist.training.meeting import LAST_WORDS, LEAVING, POLL_S, Meeting, PeersLost
from maskreid_dist.training.world import leave_world
from maskreid_shards import ShardError

GRACE_S = 10.0  # for the last words of all
PARTING_S = 5.0  # for all to have printed

Kind = Literal["user", "system", "defect", "lost"]


@dataclass(frozen=True)
class LastWords:
    """Why a rank leaves. `lost`: only because others have."""

    kind: Kind
    text: str


def last_words(error: Exception) -> LastWords:
    """What a rank says of the error that ends it."""
    if isinstance(error, UserError | ShardError):
        return LastWords("user", str(error))
    if isinstance(error, TrainingError):
        return LastWords("system", str(error))
    if isinstance(error, PeersLost):
        return LastWords("lost", str(error))
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        return LastWords("system", f"{error.filename}: {what}" if error.filename is not None else what)
    if lost_in_collective(error):
        return LastWords("lost", f"lost the others in a collective ({_first_line(error)})")
    if "DataLoader worker" in str(error):
        return LastWords("system", f"a data worker died: {_first_line(error)}")
    return LastWords("defect", f"{type(error).__name__}: {_first_line(error)} (the traceback is in its log)")


def lost_in_collective(error: Exception) -> bool:
    """Whether this is what a collective raises when another rank has left or does not come."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def leave_together(meeting: Meeting, error: Exception) -> int:
    """Tell the others why this rank leaves, print why all do, and return the exit status, the same on all ranks.

    Every rank that lives comes here soon, through its own error or through the collective that this rank has left.
    """
    own = last_words(error)
    if own.kind == "defect":
        traceback.print_exception(error)
    traceback.clear_frames(error.__traceback__)  # they hold on to the group
    if threading.current_thread() is threading.main_thread():
        # The launcher ends the machine's other ranks when one has left: they are about to.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _say(meeting, own)
        leave_world()
        words = _all_words(meeting)
        lines = _verdict(meeting, words)
        if meeting.place.local_rank == 0:
            print_errors(lines)
        _part(meeting, len(words))
    except dist.DistError:  # the store is gone, and with it rank 0
        words = {meeting.place.rank: own}
        if own.kind == "lost":
            print_errors([f"{meeting.who([0])} has left, or its machine is gone; its log says more"])
        else:
            print_errors([f"{meeting.who([meeting.place.rank])}: {own.text}"])
    user = any(said.kind == "user" for said in words.values())
    return exit_status.NEVER_AGAIN if user else exit_status.START_AGAIN


def print_errors(lines: list[str]) -> None:
    for line in lines:
        print(f"maskreid: error: {line}", file=sys.stderr, flush=True)


def _say(meeting: Meeting, own: LastWords) -> None:
    meeting.store.set(f"{LAST_WORDS}/{meeting.place.rank}", json.dumps([own.kind, own.text]))
    meeting.store.add(LEAVING, 1)


def _all_words(meeting: Meeting) -> dict[int, LastWords]:
    """The last words of every rank that has any within the grace."""
    deadline = time.monotonic() + GRACE_S
    silent = set(range(meeting.place.size))
    words: dict[int, LastWords] = {}
    while silent and time.monotonic() < deadline:
        for rank in [rank for rank in silent if meeting.store.check([f"{LAST_WORDS}/{rank}"])]:
            silent.remove(rank)
            words[rank] = LastWords(*json.loads(meeting.store.get(f"{LAST_WORDS}/{rank}")))
        if silent:
            time.sleep(POLL_S)
    return dict(sorted(words.items()))


def _verdict(meeting: Meeting, words: dict[int, LastWords]) -> list[str]:
    """The lines to print: what ranks found wrong; else who is silent; else what the collective said."""
    causes = {rank: said.text for rank, said in words.items() if said.kind != "lost"}
    if causes:
        problems = [causes.get(rank) for rank in range(meeting.place.size)]
        return [line for problem in meeting.lines(problems) for line in problem.split("\n")]
    silent = [rank for rank in range(meeting.place.size) if rank not in words]
    if silent:
        return [f"{meeting.who(silent)} left without a word (killed, or stopped)"]
    return meeting.lines([said.text for said in words.values()])


def _part(meeting: Meeting, speakers: int) -> None:
    """Leave once all have printed, rank 0 last: its store goes with it."""
    for key in ("printed", "parted"):
        meeting.store.add(key, 1)
        others_leave_first = key == "parted" and not meeting.is_first
        deadline = time.monotonic() + (0 if others_leave_first else PARTING_S)
        while meeting.store.add(key, 0) < speakers and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
