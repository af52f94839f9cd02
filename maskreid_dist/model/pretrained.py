"""Networks that come with this package: `pretrained:NAME` wherever a command takes a run.

Each is a folder of `maskreid push --output`: weights.safetensors, manifest.json with their sha256, README.md,
the model card.
"""

from pathlib import Path

from maskreid_dist.errors import CheckpointError

PREFIX = "pretrained:"
FOLDER = Path(__file__).resolve().parents[1] / "pretrained"


def pretrained_names() -> list[str]:
    return sorted(path.name for path in FOLDER.glob("*") if (path / "manifest.json").is_file())


def is_pretrained(path: Path) -> bool:
    return str(path).startswith(PREFIX)


def place_of(path: Path) -> Path:
    """The folder of `pretrained:NAME`; any other path is itself. Raises CheckpointError: no such name."""
    if not is_pretrained(path):
        return path
    name = str(path).removeprefix(PREFIX)
    names = pretrained_names()
    if name not in names:
        raise CheckpointError(f"{path}: this package has {', '.join(names) or 'none'}")
    return FOLDER / name
