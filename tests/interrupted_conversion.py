"""`maskreid convert ...` that gets a Ctrl-C at a known moment: its first argument says after how many
samples.

Run as a program. The signal goes to the whole process group, workers too, as a terminal sends it.
"""

import os
import signal
import sys
from typing import Any

from maskreid_dist.cli.app import main

# The program has imported it; the package's own name `convert` is a function.
Ticker = sys.modules["maskreid_shards.convert"]._Ticker


def press_after(samples: int) -> None:
    """The first process counts samples, its workers' too: there it happens."""
    count = Ticker.__call__

    def pressed(ticker: Any, more: int) -> None:
        count(ticker, more)
        if ticker.done >= samples:
            os.killpg(0, signal.SIGINT)

    Ticker.__call__ = pressed


if __name__ == "__main__":
    # A process that a shell started in the background ignores Ctrl-C, and so do those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    press_after(int(sys.argv.pop(1)))
    main()
