"""A calibration on disk, beside its checkpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.calibration import Calibration, Threshold
from maskreid_shards.atomic import write_atomically
from maskreid_shards.opening import read_json

FORMAT = "maskreid-calibration-1"


def save(path: Path, calibration: Calibration) -> None:
    """Replace the file at once."""
    write_atomically(path, (json.dumps({"format": FORMAT, **asdict(calibration)}, indent=2) + "\n").encode())


def load(path: Path) -> Calibration:
    """Raises UserError for a file that is missing or no calibration."""
    try:
        values: dict[str, Any] = read_json(path)
        if values.pop("format") != FORMAT:
            raise UserError(f"{path}: another format than {FORMAT}; calibrate again")
        values["overall"] = _threshold(values["overall"])
        values["camera_pairs"] = tuple(map(_threshold, values["camera_pairs"]))
        values["too_few"] = tuple((int(a), int(b)) for a, b in values["too_few"])
        for name in ("slope", "offset", "wanted"):
            values[name] = float(values[name])
        return Calibration(**values)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: missing; maskreid calibrate makes it") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: no calibration ({type(error).__name__}); calibrate again") from None


def _threshold(values: dict[str, Any]) -> Threshold:
    cameras = values.pop("cameras")
    pair = None if cameras is None else (int(cameras[0]), int(cameras[1]))
    false, true = (
        (float(values[name][0]), float(values[name][1]))
        for name in ("false_match_interval", "true_match_interval")
    )
    return Threshold(
        cameras=pair,
        threshold=float(values["threshold"]),
        false_match_rate=float(values["false_match_rate"]),
        false_match_interval=false,
        true_match_rate=float(values["true_match_rate"]),
        true_match_interval=true,
        impostors=int(values["impostors"]),
        genuine=int(values["genuine"]),
    )


def calibration_path(checkpoint: Path) -> Path:
    """Beside the run's checkpoints, by the checkpoint's name: RUN/calibration/step_00000500.json."""
    return checkpoint.parent.parent / "calibration" / f"{checkpoint.name}.json"


def load_for(checkpoint: Path, weights_sha256: str) -> Calibration | None:
    """The checkpoint's calibration; None where there is none. Raises UserError for one of other weights."""
    path = calibration_path(checkpoint)
    if not path.exists():
        return None
    calibration = load(path)
    if calibration.weights_sha256 != weights_sha256:
        raise UserError(f"{path}: of other weights than {checkpoint}; calibrate again")
    return calibration
