"""`maskreid convert ...` whose workers get a Ctrl-C while they start, before any code of ours runs in them.

Run as a program. A worker imports this file first, under another name.
"""

import signal

if __name__ == "__main__":
    from maskreid_dist.cli import main

    # A process that a shell started in the background ignores Ctrl-C, and so do those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
else:
    signal.raise_signal(signal.SIGINT)
