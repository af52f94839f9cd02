"""Stopping on request: the step is finished and saved first."""

import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from maskreid_dist.training.world import World

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request after a save; the same command continues


@dataclass
class StopRequest:
    """Asks training to finish its step, save, and leave with status 75.

    Comes as SIGINT, SIGTERM or SIGUSR1 to any rank, or as a file `stop` in the run directory (seen by rank 0).
    """

    file: Path
    signalled: bool = field(default=False, init=False)

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def here(self, world: World) -> bool:
        """Whether this rank was asked to stop; `World.any_rank` makes it everybody's."""
        return self.signalled or (world.is_first and self.file.exists())
