"""Exit statuses: what whoever started a command may conclude from how it ended.

A scheduler starts a training again on 75 and on 1, and never on 2: the same command would end the same way.
`torchrun` answers 1 for all but 0; its own report has the ranks' statuses.
"""

DONE = 0
START_AGAIN = 1  # of the system or a defect: a rank died, a disk was full; the same command may continue
NEVER_AGAIN = 2  # of the user: recipe, data, options; something must be changed first
STOPPED = 75  # EX_TEMPFAIL: stopped on request after a save; the same command continues
