"""Where a training comes from: what is written beside its weights, so that it can be traced and repeated."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import maskreid_dist
from maskreid_dist.training.meeting import Meeting, spans
from maskreid_shards.shown import urls_without_secrets

PACKAGES = ("deepspeed", "numpy", "pillow", "torchvision", "triton")
GIT_S = 10.0  # for an answer of git; a disk may be slow


def origin_of(meeting: Meeting, steps: int) -> dict[str, Any]:
    """Rank 0's command, commit and versions, the start, and the host of each rank, the same on every rank.
    All ranks take part."""
    own: dict[str, Any] = {}
    if meeting.is_first:
        own = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": steps,
            "command": shlex.join(map(urls_without_secrets, sys.argv)),
            "commit": commit_of(Path(str(maskreid_dist.__file__)).parent),
            "versions": versions(),
            "hosts": hosts([member.host for member in meeting.members]),
        }
    return meeting.from_first(own)


def hosts(of_ranks: list[str]) -> list[str]:
    """Each host once, with its ranks: "node0: 0-7"."""
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(of_ranks):
        ranks.setdefault(host, []).append(rank)
    return [f"{host}: {spans(own)}" for host, own in ranks.items()]


def versions() -> dict[str, str]:
    """Of this package and what computes."""
    found = {"maskreid_dist": maskreid_dist.__version__, "python": platform.python_version()}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ImportError:  # PackageNotFoundError
            continue
    return found


def commit_of(folder: Path) -> str | None:
    """The commit of a git checkout whose files these are, with "+changes" if any differs; None: no
    checkout."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:  # an environment inside a checkout
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
