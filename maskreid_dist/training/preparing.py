"""What each rank makes ready by itself before it trains, and the vote on whether all could."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskreid_dist.config import Config
from maskreid_dist.data.batches import AnyPlan, open_recipe_shards, recipe_plan
from maskreid_dist.errors import CheckpointError, UserError
from maskreid_dist.evaluation.evaluate import check_queries
from maskreid_dist.model.build import check_backbone
from maskreid_dist.model.initial import InitialWeights, check_initial, take_initial_weights
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place
from maskreid_dist.training.facts import Fact, agree_on_facts, facts_of_rank
from maskreid_dist.training.interfaces import check_interfaces
from maskreid_dist.training.meeting import Meeting
from maskreid_dist.training.trackers import check_trackers
from maskreid_dist.training.world import choose_device
from maskreid_shards import ShardError, ShardSet, Split

TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class Preparation:
    """What a rank needs to train, from its own disk and machine."""

    config: Config
    split: Split
    plan: AnyPlan
    device: torch.device
    validation: ShardSet | None = None  # of the evaluations while training
    data: dict[str, Any] = field(default_factory=dict)  # where the images and masks come from


def prepare_alike(meeting: Meeting, recipe: Path, overrides: Sequence[str], resume: bool) -> Preparation:
    """Prepare on every rank, and see that all prepared the same. All ranks take part.

    Raises UserError on every rank: what any of them lacks or cannot read, or what differs between them.
    """
    prepared: Preparation | None = None
    problem = None
    try:
        prepared = prepare(recipe, overrides, meeting.place)
        if not resume:  # a checkpoint needs it no more
            check_initial(prepared.config.model)
    except (UserError, ShardError) as error:  # others wait for this rank: it says so before it leaves
        problem = str(error)
    except OSError as error:
        problem = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
    meeting.refuse(problem)
    assert prepared is not None
    agree_on_facts(
        meeting, facts_of_rank(prepared.config, prepared.split, resume, prepared.device, prepared.validation)
    )
    check_gpus(meeting, prepared.device)
    check_interfaces(meeting)
    return prepared


def initial_weights_alike(network: nn.Module, path: Path, meeting: Meeting) -> InitialWeights:
    """`take_initial_weights` on every rank. All ranks take part.

    Raises UserError on every rank: any of them cannot, or has another file there.
    """
    taken: InitialWeights | None = None
    problem = None
    try:
        taken = take_initial_weights(network, path)
    except CheckpointError as error:
        problem = str(error)
    meeting.refuse(problem)
    assert taken is not None
    shown = f"{taken.sha256[:12]} ({path})"
    agree_on_facts(meeting, {"the file of model.init": Fact(taken.sha256, shown)})
    return taken


def check_gpus(meeting: Meeting, device: torch.device) -> None:
    """Raise UserError, the same on every rank, where two ranks of a host would take the same GPU."""
    ranks: dict[tuple[str, int], list[int]] = {}
    for rank, member in enumerate(meeting.members):
        ranks.setdefault((member.host, member.local_rank), []).append(rank)
    shared = [(local_rank, owners) for (_, local_rank), owners in ranks.items() if len(owners) > 1]
    if device.type == "cuda" and shared:
        local_rank, owners = shared[0]
        raise UserError(
            f"{meeting.who(owners)} would share GPU {local_rank}: the launcher gives them the same LOCAL_RANK"
        )


def prepare(recipe: Path, overrides: Sequence[str], place: Place) -> Preparation:
    """Raises UserError and maskreid_shards.ShardError; no other rank takes part."""
    config = load_recipe(recipe, overrides)
    check_world(config, place.size)
    check_backbone(config)
    device = choose_device(place)
    if config.data.decoder == "gpu" and device.type != "cuda":
        raise UserError('data.decoder = "gpu": torch finds no GPU here; use "torchvision" or "pillow"')
    if config.engine.sync_batchnorm and device.type != "cuda":
        raise UserError(
            "engine.sync_batchnorm: torch has it on GPUs alone, and finds none here; leave it out"
        )
    shards = open_recipe_shards(config.data)
    split = shards.split(TRAIN_SPLIT)
    _ = split.index  # of its size, and its checksums: read before the others count on it
    _check_deepspeed()
    if place.is_first:
        check_trackers(config.run.tracker)
    plan = recipe_plan(split, config, place.size)
    return Preparation(config, split, plan, device, _open_validation(config), data_facts(shards))


def data_facts(shards: ShardSet) -> dict[str, Any]:
    """For a checkpoint's manifest: the data set, the sizes of its training split, what its masks are and who
    made them (empty where the shards do not say)."""
    manifest = shards.manifest
    train, masks = manifest.splits[TRAIN_SPLIT], manifest.masks
    return {
        "dataset": manifest.dataset,
        "layout": manifest.layout,
        "images": train.samples,
        "identities": train.identities,
        "cameras": len(train.cameras),
        "bad_masks": {"policy": masks.policy, "checked": masks.checked, **masks.counts},
        "mask_maker": dict(masks.maker),
    }


def _open_validation(config: Config) -> ShardSet | None:
    """The shards of the evaluations while training. Raises UserError and maskreid_shards.ShardError: none
    are there, a split is missing, no query has a match."""
    if not config.run.evaluate_every:
        return None
    where = config.run.evaluate_shards
    data = (
        config.data
        if where is None
        else config.data.model_copy(update={"shards": where, **_cache(config, where)})
    )
    shards = open_recipe_shards(data)
    check_queries(shards)
    return shards


def _cache(config: Config, where: str) -> dict[str, None]:
    """A cache is of shards behind a URL."""
    return {} if "://" in where else {"cache": None, "cache_gb": None}


def check_world(config: Config, size: int) -> None:
    """Raise UserError where another number of ranks was started than the recipe is for (engine.world)."""
    wanted = config.engine.world
    if wanted is None or wanted == size:
        return
    started = "1 rank was started" if size == 1 else f"{size} ranks were started"
    hint = "see the launcher's hosts and ranks per host"
    if size < wanted:  # what `deepspeed` makes of it is a line in its log
        hint += "; deepspeed takes this machine alone where its --hostfile is missing"
    raise UserError(f"{started}, the recipe expects engine.world = {wanted}; {hint}")


def _check_deepspeed() -> None:
    try:
        import deepspeed  # noqa: F401 (takes seconds, and may lack something on one machine)
    except ImportError as error:
        raise UserError(
            f"deepspeed cannot be imported: {error}; install the same packages on every machine"
        ) from None
