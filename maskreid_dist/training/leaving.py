"""How ranks leave together: whatever ends one of them is one line on rank 0's terminal, and soon all have
left.

A rank that fails says its last words in the store and closes its connections, which ends the collective that
others wait in. Everybody then reads everybody's words; the first rank of each machine prints them. A rank
that says nothing is known by its pulse.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from maskreid_dist import exit_status
from maskreid_dist.errors import TrainingError, UserError
from maskreid_dist.terminal import say
from maskreid_dist.training.environment import Place
from maskreid_dist.training.launcher_watch import NOTICE_S
from maskreid_dist.training.meeting import (
    LAST_WORDS,
    LEAVING,
    POLL_S,
    Meeting,
    PeersLost,
    open_store,
    store_is_of_agent,
)
from maskreid_dist.training.pulse import BEAT_S, Listener, end_process, print_stacks
from maskreid_dist.training.world import leave_world
from maskreid_shards import ShardError

GRACE_S = 15.0  # for the last words of all
STILL_S = 3 * BEAT_S  # without a beat: stopped or gone
PARTING_S = 5.0  # for all to have printed

# `lost`: only because others are; `late`: after waiting in vain; `stuck`: its main thread does not come back
Kind = Literal["user", "system", "defect", "lost", "late", "stuck"]
CAUSES = ("user", "system", "defect")


@dataclass(frozen=True)
class LastWords:
    """Why a rank leaves."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Silent:
    """A rank without last words; `still`: without a pulse."""

    still: bool
    doing: str


def meet(place: Place, timeout_s: float) -> Meeting | None:
    """The launch's meeting; None, and a line of why, where this rank cannot reach it."""
    try:
        return Meeting(place, open_store(place, timeout_s), timeout_s)
    except OSError as error:  # nobody to tell
        print_errors([f"rank {place.rank} on {socket.gethostname()}: {last_words(error).text}"])
        return None


def last_words(error: Exception) -> LastWords:
    """What a rank says of the error that ends it."""
    text = str(error)
    if isinstance(error, UserError | ShardError):
        return LastWords("user", text)
    if isinstance(error, TrainingError):
        return LastWords("system", text)
    if isinstance(error, PeersLost):
        return LastWords("late" if error.waited else "lost", text)
    if isinstance(error, OSError):
        what = error.strerror or text or type(error).__name__
        # TensorBoard's writer has bytes for a file name.
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return LastWords("system", f"{where}{what}")
    if lost_in_collective(error):
        waited = "imed out" in text or "timeout" in text
        return LastWords(
            "late" if waited else "lost", f"lost the others in a collective ({_first_line(text)})"
        )
    if text.startswith("DataLoader worker"):
        return LastWords("system", f"a data worker died: {_first_line(text)}")
    if "unable to" in text and ("shared memory" in text or "shm" in text):
        return LastWords("system", f"/dev/shm: {_first_line(text[text.index('unable to') :])}")
    return LastWords("defect", f"{type(error).__name__}: {_first_line(text)} (the traceback is in its log)")


def lost_in_collective(error: Exception) -> bool:
    """Whether this is what a collective raises when another rank has left or does not come."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def leave_together(meeting: Meeting, error: Exception) -> int:
    """Tell the others why this rank leaves, print why all do, and return the exit status, the same on all
    ranks.

    Every rank that lives comes here soon, through its own error or through the collective that this rank has
    left.
    """
    meeting.pulse.leaves = True
    own = last_words(error)
    if own.kind == "defect":
        traceback.print_exception(error)
    waited_here = "".join(traceback.format_tb(error.__traceback__))
    traceback.clear_frames(error.__traceback__)  # they hold on to the group
    if threading.current_thread() is threading.main_thread():
        # The launcher ends the machine's other ranks when one has left: they are about to.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = _leave(meeting, own, f"the main thread waited here:\n{waited_here}")
    meeting.pulse.stop()
    return status


def part(meeting: Meeting) -> None:
    """Leave after a training that ended well; rank 0 last, its store goes with it. All ranks take part."""
    meeting.pulse.stop()
    with suppress(dist.DistError):  # rank 0 did not wait that long
        _wait_for_all(meeting, "parted", meeting.place.size if meeting.is_first else 0)
    leave_world()


def watch_over(meeting: Meeting) -> None:
    """Start the pulse; a rank whose main thread is stuck leaves with the others, from the pulse's thread."""
    if meeting.place.size == 1:
        return
    store = meeting.store.clone()  # type: ignore[attr-defined]
    if store_is_of_agent():  # all ranks may live, and save
        meeting.pulse.patience_s = NOTICE_S

    def leave(doing: str) -> None:
        beside = Meeting(meeting.place, store, meeting.timeout_s, meeting.members)
        beside.pulse = meeting.pulse
        end_process(_leave(beside, LastWords("stuck", doing), "", close=False))

    meeting.pulse.start(store, lambda: bool(store.check([LEAVING])), leave)


def print_errors(lines: Iterable[str]) -> None:
    for line in lines:
        say(f"maskreid: error: {line}", file=sys.stderr, flush=True)


def _leave(meeting: Meeting, own: LastWords, stacks: str, close: bool = True) -> int:
    rank = meeting.place.rank
    words = {rank: own}
    try:
        meeting.store.set(f"{LAST_WORDS}/{rank}", json.dumps([own.kind, own.text]))
        meeting.store.add(LEAVING, 1)
        if close:
            leave_world()
        words, silent = _all_words(meeting)
        hang = any(said.kind in ("late", "stuck") for said in words.values())
        if hang and not any(said.kind in CAUSES for said in words.values()):
            print_stacks(f"rank {rank} on {socket.gethostname()}: {stacks}all threads:")
        _wait_for_all(meeting, "ready", len(words))
        if meeting.place.local_rank == 0:
            print_errors(verdict(meeting, words, silent))
        _wait_for_all(meeting, "printed", len(words))
        _wait_for_all(meeting, "parted", len(words) if meeting.is_first else 0)  # its store goes with rank 0
    except dist.DistError:  # the store is gone, and with it rank 0
        if own.kind in CAUSES:
            print_errors([f"{meeting.who([rank])}: {own.text}"])
        elif _speaks_without_first(meeting):
            print_errors([f"{meeting.who([0])} has left, or its machine is gone; its log says more"])
    user = any(said.kind == "user" for said in words.values())
    return exit_status.NEVER_AGAIN if user else exit_status.START_AGAIN


def _speaks_without_first(meeting: Meeting) -> bool:
    """Whether this rank speaks for its machine: local rank 0, or the next one where rank 0 was that."""
    members, place = meeting.members, meeting.place
    beside_first = bool(members) and members[place.rank].host == members[0].host
    return place.local_rank == 0 or (beside_first and place.local_rank == 1)


def _all_words(meeting: Meeting) -> tuple[dict[int, LastWords], dict[int, Silent]]:
    """The last words of every rank that has any within the grace, and the ranks without."""
    deadline = time.monotonic() + GRACE_S
    silent = set(range(meeting.place.size))
    words: dict[int, LastWords] = {}
    listener = Listener(meeting.store)
    while True:
        for rank in sorted(silent):
            if meeting.store.check([f"{LAST_WORDS}/{rank}"]):
                silent.remove(rank)
                words[rank] = LastWords(*json.loads(meeting.store.get(f"{LAST_WORDS}/{rank}")))
        still = {rank: listener.quiet_s(rank) > STILL_S for rank in sorted(silent)}
        if all(still.values()) or time.monotonic() > deadline:
            quiet = {rank: Silent(of, listener.doing(rank)) for rank, of in still.items()}
            return dict(sorted(words.items())), quiet
        time.sleep(POLL_S)


def verdict(meeting: Meeting, words: dict[int, LastWords], silent: dict[int, Silent]) -> list[str]:
    """The lines to print: what ranks found wrong; else who is silent or stuck; else what the collective
    said."""
    causes = {rank: said.text for rank, said in words.items() if said.kind in CAUSES}
    if causes:
        problems = [causes.get(rank) for rank in range(meeting.place.size)]
        return [line for problem in meeting.lines(problems) for line in problem.split("\n")]
    waited = [said.text for said in words.values() if said.kind == "late"]
    if not meeting.members and waited:  # some have not even joined
        return waited[:1]
    absent = {
        rank: f"left without a word, or is stopped (last heard of: {of.doing})"
        if of.still
        else f"has not arrived, the others waited in vain (last heard of: {of.doing})"
        for rank, of in silent.items()
    }
    absent |= {
        rank: f"has not arrived, the others waited in vain (it was at: {said.text}; its stacks are in its "
        "log)"
        for rank, said in words.items()
        if said.kind == "stuck" and waited
    }
    if absent:
        here = f"; rank {meeting.place.rank} was at: {meeting.pulse.doing}"
        return [f"{meeting.who([rank])} {text}{here}" for rank, text in sorted(absent.items())]
    return meeting.lines([words[rank].text for rank in sorted(words)])


def _wait_for_all(meeting: Meeting, key: str, ranks: int) -> None:
    """Count this rank in, and wait until as many have been. Not for ever: one may have died on the way."""
    meeting.store.add(key, 1)
    deadline = time.monotonic() + PARTING_S
    while meeting.store.add(key, 0) < ranks and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")
