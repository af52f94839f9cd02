"""What a run directory, `runs/<name>`, holds: the names that training, evaluation and the program share."""

METRICS = "metrics.jsonl"  # a line of numbers for each record
TENSORBOARD = "tensorboard"
DEEPSPEED_JSON = "deepspeed.json"  # what DeepSpeed was told
CHECKPOINTS = "checkpoints"
LOCK = "lock"  # held by the training that writes here
STOP = "stop"  # asks the training to finish its step, save and leave
