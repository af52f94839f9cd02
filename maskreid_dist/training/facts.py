"""What must be the same on every rank, and the line for each thing that is not."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

import maskreid_dist
import maskreid_kernels
import maskreid_shards
from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.training.meeting import Meeting
from maskreid_shards import ShardSet, Split
from maskreid_shards.shown import without_secrets

PACKAGES = ("deepspeed", "numpy", "pillow", "torchvision")
# Places of a machine: what lies there is compared instead.
MAY_DIFFER = {"data.shards", "data.cache", "run.evaluate_shards"}


class Fact(NamedTuple):
    """A value that is compared, and what a line shows for it."""

    value: Any
    shown: str


def facts_of_rank(
    config: Config, split: Split, resume: bool, device: torch.device, validation: ShardSet | None = None
) -> dict[str, Fact]:
    """The recipe as resolved, the shards, the versions and sources of what computes, by the name a line gives
    them.

    Not compared: host names, the folders of shards, cache, runs and sources, the model of a GPU.
    """
    facts = _settings(config)
    facts["--resume"] = Fact(resume, str(resume).lower())
    facts["the shards' fingerprint"] = _shown_with_place(
        split.fingerprint, without_secrets(config.data.shards)
    )
    if validation:
        facts["the fingerprint of run.evaluate_shards"] = _shown_with_place(
            validation.fingerprint, validation.location
        )
    return facts | _software(config, device)


def facts_of_evaluation(
    config: Config, device: torch.device, shards: Mapping[str, ShardSet], options: Mapping[str, object]
) -> dict[str, Fact]:
    """The recipe of the network, the shards by what they are for, the command's options (with what names the
    network), and what computes, by the name a line gives them."""
    facts = _settings(config)
    for name, opened in shards.items():
        facts[f"the fingerprint of the {name}"] = _shown_with_place(opened.fingerprint, opened.location)
    facts |= {name: Fact(value, json.dumps(value)) for name, value in options.items()}
    return facts | _software(config, device)


def _settings(config: Config) -> dict[str, Fact]:
    """The recipe's, but for places of a machine."""
    settings = flat(config.model_dump(mode="json"))
    return {key: Fact(value, json.dumps(value)) for key, value in settings.items() if key not in MAY_DIFFER}


def _software(config: Config, device: torch.device) -> dict[str, Fact]:
    """The versions and sources of what computes."""
    facts = {"the device": _plain(device.type)}
    python = ".".join(platform.python_version_tuple()[:2])
    facts["the version of python"] = _plain(python)
    facts["the version of torch"] = _plain(torch.__version__)
    timm = () if config.model.backbone == "inception" else ("timm",)
    for package in (*PACKAGES, *timm):
        facts[f"the version of {package}"] = _plain(_version(package))
    for module in (maskreid_dist, maskreid_kernels, maskreid_shards):
        root = Path(str(module.__file__)).parent
        facts[f"the source of {module.__name__}"] = _shown_with_place(source_digest(module), str(root))
    return facts


def agree_on_facts(meeting: Meeting, facts: Mapping[str, Fact]) -> None:
    """Raise UserError on every rank if any fact differs: a line each, with its values and their ranks. All
    take part."""
    values = {key: fact.value for key, fact in facts.items()}
    digests = meeting.gather(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    raise UserError("\n".join(differences(meeting, meeting.gather(dict(facts)))))


def differences(meeting: Meeting, facts: Sequence[Mapping[str, Sequence[Any]]]) -> list[str]:
    """A line for each fact that differs. `facts`: one mapping a rank, of [value, shown]."""
    lines = []
    for key in dict.fromkeys(key for rank_facts in facts for key in rank_facts):
        ranks: dict[str, list[int]] = {}
        shown: dict[str, str] = {}
        for rank, rank_facts in enumerate(facts):
            value, text = rank_facts.get(key, ("none", "none"))
            ranks.setdefault(json.dumps(value), []).append(rank)
            shown.setdefault(json.dumps(value), text)
        if len(ranks) > 1:
            values = "; ".join(f"{shown[value]} on {meeting.who(owners)}" for value, owners in ranks.items())
            lines.append(f"{key} is not the same on all ranks: {values}")
    return lines


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's values by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values


def source_digest(module: ModuleType) -> str:
    """sha256 over the Python files of a package, by path and content."""
    root = Path(str(module.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _plain(value: str) -> Fact:
    return Fact(value, value)


def _shown_with_place(digest: str, place: str) -> Fact:
    return Fact(digest, f"{digest[:12]} ({place})")
