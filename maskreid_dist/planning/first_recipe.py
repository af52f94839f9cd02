"""A first recipe for given shards: what their statistics and this machine suggest, as TOML with comments."""

import os
from string import Template

import numpy as np
import torch

from maskreid_dist.errors import UserError
from maskreid_shards import ShardSet

PASSES = 60  # over the identities, on a GPU; person re-identification trains for 60 to 120
FEWEST_STEPS, MOST_STEPS_CPU = 200, 800  # of a first look on a CPU: minutes

TEXT = Template("""\
# A first recipe for $shards,
# written by `maskreid init` for $identities identities with $images images ($few of them with fewer than $K).
# Check it: maskreid recipe FILE; its size on any number of ranks: maskreid plan-run FILE --world N
name = "$name"
seed = 1

[data]
shards = "$shards"
$size
erasing = 0.3       # a rectangle of the mean colour: for images that others hide parts of
workers = $workers          # decoding processes of a rank; $cores processors here

[batch]
identities = $P      # P, over all ranks: more negatives of each anchor
images = $K           # K; identities with fewer repeat theirs (few_images)

[model]
$model
fusing_rows = 6     # stripes of the fusing layer

[loss]
name = "ranking"    # or batch_hard, circle, supervised_contrastive, n_pair, all_pairs, softmax
identity_weight = 1.0  # of the identification loss beside it; 0: the paper's

[optimizer]
name = "adamw"
lr = 0.003
steps = $steps         # $passes passes over the identities
warmup_steps = $warmup
schedule = "cosine"
final_lr_factor = 0.01

[run]
checkpoint_every = $every
$evaluate
""")

SIZE_CPU = (
    "height = 72         # half of the paper's, for a CPU\nwidth = 28\nresize_height = 83\nresize_width = 32"
)
SIZE_GPU = """height = 144        # the paper's
width = 56
resize_height = 160
resize_width = 64"""


def first_recipe(shards: ShardSet, location: str, name: str, ranks: int) -> str:
    """The TOML text. Raises UserError for shards that cannot train: too few identities or images."""
    counts = _images_of_identities(shards)
    K = 4 if np.median(counts) >= 3 else 2
    P = min(16 * ranks, len(counts))
    P -= P % ranks
    if P < 2 or P // ranks < 1:
        raise UserError(
            f"{shards.location}: {len(counts)} identities in train, and a batch needs two, and one a rank"
        )
    gpu = torch.cuda.is_available()
    a_pass = max(1, len(counts) // P)
    steps = PASSES * a_pass if gpu else min(MOST_STEPS_CPU, PASSES * a_pass)
    steps = max(FEWEST_STEPS, round(steps, -2))
    cores = len(os.sched_getaffinity(0))
    evaluates = {"query", "gallery"} <= set(shards.splits)
    return TEXT.substitute(
        shards=_quoted(location),
        name=_quoted(name),
        identities=len(counts),
        images=int(counts.sum()),
        few=int((counts < K).sum()),
        P=P,
        K=K,
        size=SIZE_GPU if gpu else SIZE_CPU,
        model="width = 1.0" if gpu else "width = 0.5         # half of the channels, for a CPU",
        workers=min(8, max(0, cores // ranks - 1)),
        cores=cores,
        steps=steps,
        passes=f"{steps * P / len(counts):.0f}",
        warmup=max(10, steps // 16),
        every=max(50, steps // 8),
        evaluate=f"evaluate_every = {max(100, steps // 4)}"
        if evaluates
        else "# evaluate_every needs the splits query and gallery",
    )


def _images_of_identities(shards: ShardSet) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Of the split train; distractors and junk do not count."""
    table = shards.split("train").table
    named = [pid for pid in table.pids.tolist() if pid > 0]
    return np.array([len(table.images_of(pid)) for pid in named], np.int64)


def _quoted(text: str) -> str:
    """For a basic string of TOML."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
