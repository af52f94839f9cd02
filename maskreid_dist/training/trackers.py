"""Where a run's numbers go besides `metrics.jsonl`: TensorBoard, W&B, Trackio, MLflow, as `run.tracker`
names them.

One vocabulary, wandb's: a tracker is made with the run's name and recipe, logs values at a step, and
finishes. All but TensorBoard are packages of their own, imported where the recipe names them, on rank 0
alone.
"""

import importlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.run_directory import TENSORBOARD, TRACKED
from maskreid_dist.training.facts import flat
from maskreid_shards.atomic import write_atomically
from maskreid_shards.opening import read_json

PARAMETERS = 100  # that an MLflow server takes at once


class Tracker(Protocol):
    """What takes a run's numbers."""

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Start:
    """What a tracker is made with. `ids`: by tracker, what it calls the run, kept in the run directory, so
    that a resumed run goes on under the same name."""

    run: Path
    step: int
    config: Config
    ids: dict[str, str]


class TensorBoard:
    """Torch's writer. The point at the step that a run resumes from stays; those after it are purged."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _without_writer
        self.writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


class Wandb:
    """W&B. It takes no step before the last it was given: steps that are trained again after a resume are
    passed over there."""

    def __init__(self, start: Start) -> None:
        wandb = _package("wandb")
        self.run = wandb.init(
            project=start.config.run.project,
            name=start.config.name,
            id=start.ids["wandb"],
            resume="allow",
            dir=str(start.run),
            config=start.config.model_dump(mode="json"),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def finish(self) -> None:
        self.run.finish()


class Trackio:
    """Trackio keeps numbers on this machine, or where its own variables say."""

    def __init__(self, start: Start) -> None:
        self.trackio = _package("trackio")
        self.trackio.init(
            project=start.config.run.project,
            name=start.ids["trackio"],
            resume="allow",
            config=start.config.model_dump(mode="json"),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(scalars), step=step)

    def finish(self) -> None:
        self.trackio.finish()


class Mlflow:
    """MLflow, at the server that MLFLOW_TRACKING_URI names. The recipe's keys are its parameters, set
    once."""

    def __init__(self, start: Start) -> None:
        self.mlflow = _package("mlflow")
        self.mlflow.set_experiment(start.config.run.project)
        known = start.ids.get("mlflow")
        if known:
            self.mlflow.start_run(run_id=known)
            return
        run = self.mlflow.start_run(run_name=start.config.name)
        start.ids["mlflow"] = str(run.info.run_id)
        keys = list(flat(start.config.model_dump(mode="json")).items())
        for first in range(0, len(keys), PARAMETERS):
            self.mlflow.log_params(dict(keys[first : first + PARAMETERS]))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics(dict(scalars), step=step)

    def finish(self) -> None:
        self.mlflow.end_run()


TRACKERS: dict[str, Callable[[Start], Tracker]] = {
    "tensorboard": lambda start: TensorBoard(start.run, start.step),
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


class Trackers:
    """Those of a recipe. TensorBoard writes beside the records: what fails there ends the training. One of
    another package that fails is left out from then on, and said once: it is not worth a training."""

    def __init__(self, run: Path, step: int, config: Config, say: Callable[[str], None]) -> None:
        self.say = say
        ids = _ids(run / TRACKED) or {
            name: f"{config.name}-{uuid.uuid4().hex[:8]}" for name in ("wandb", "trackio")
        }
        start = Start(run, step, config, ids)
        self.live: dict[str, Tracker] = {}
        for name in config.run.tracker:
            self._guarded(name, partial(self._begin, name, start))
        if set(self.live) - {"tensorboard"}:
            write_atomically(run / TRACKED, (json.dumps(ids) + "\n").encode())

    def _begin(self, name: str, start: Start) -> None:
        self.live[name] = TRACKERS[name](start)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self.live.items()):
            self._guarded(name, partial(tracker.log, scalars, step))

    def finish(self) -> None:
        for name, tracker in list(self.live.items()):
            self._guarded(name, tracker.finish)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        if name == "tensorboard":
            action()
            return
        try:
            action()
        except Exception as error:  # of a package, a server, a network: whatever it is
            self.live.pop(name, None)
            text = next(iter(str(error).splitlines()), "")
            self.say(f"warning: {name} is left out from here on ({type(error).__name__}: {text})")


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError where a package that a tracker needs cannot be imported: before anything starts."""
    for name in names:
        if name != "tensorboard":
            _package(name)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'run.tracker names "{name}", which cannot be imported ({error}); '
            f"pip install {name}, or leave it out"
        ) from None


def _ids(path: Path) -> dict[str, str]:
    try:
        ids = read_json(path)
    except (OSError, ValueError):
        return {}
    return {str(name): str(id) for name, id in ids.items()} if isinstance(ids, dict) else {}


def _without_writer(failure: threading.ExceptHookArgs) -> None:
    """No traceback of TensorBoard's writer: what ends its thread is raised by the next number it is given."""
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)
