"""What a run directory, `runs/<name>`, holds: the names that training, evaluation and the program share."""

from collections.abc import Mapping
from typing import Any

METRICS = "metrics.jsonl"  # a line of numbers for each record
RUN = "run.json"  # the recipe and the origin of the last start: command, versions, commit, hosts, time
# Of a step, in its order: each has the mean of its milliseconds in a record, as `data_ms`. ranks: waiting
# until all have their batch; gather: embeddings and labels over the ranks, within the loss; other: what
# lies between.
PHASES = ("data", "ranks", "forward", "gather", "loss", "backward", "optimizer", "other")
EVENTS = "events.jsonl"  # what else happened at a step: a changed key, a step left out
NON_FINITE = "non_finite.json"  # the last step whose values were not finite: its images and the ranks' values
TRACKED = "trackers.json"  # what other trackers call this run
TENSORBOARD = "tensorboard"
PROFILE = "profile"  # traces of --profile
DEEPSPEED_JSON = "deepspeed.json"  # what DeepSpeed was told
CHECKPOINTS = "checkpoints"
# of the evaluations while training: step, figures in per cent, and its checkpoint, which is kept
BEST = "best.json"
LOCK = "lock"  # held by the training that writes here
STATUS = "status.json"  # the ranks' exit status, once they have ended
STOP = "stop"  # asks the training to finish its step, save and leave


def shares_of_phases(record: Mapping[str, Any]) -> str:
    """ "forward 35 %, backward 51 %": what a record says of its steps' phases, those of 1 % or more."""
    shares = {name: 100 * record.get(f"{name}_ms", 0) / record["step_ms"] for name in PHASES}
    return ", ".join(f"{name} {share:.0f} %" for name, share in shares.items() if share >= 1)
