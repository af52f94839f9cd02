"""How a study stands: what is done, what is not, what it will take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskreid_dist.data.batches import open_recipe_shards
from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.evaluate import check_queries
from maskreid_dist.planning.run_plan import Rates, run_plan
from maskreid_dist.study.result import RowResult, find_results
from maskreid_dist.study.study_file import LoadedStudy, Task, same_training
from maskreid_shards import ShardError, ShardSet


@dataclass(frozen=True)
class State:
    """done: results by task name. stale: files of other recipes, other shards, or of seeds and rows that the
    study no longer has. missing: row names whose shards are not there, and why. tflop: of a whole training,
    by row."""

    loaded: LoadedStudy
    done: Mapping[str, RowResult]
    stale: Sequence[Path]
    missing: Mapping[str, str]
    tflop: Mapping[str, float]

    def waiting(self, tasks: Iterable[Task]) -> list[Task]:
        """Those that can run, and have no result."""
        return [task for task in tasks if task.name not in self.done and task.row.name not in self.missing]

    def results_of(self, row: str) -> dict[int, RowResult]:
        """By seed."""
        tasks = (task for task in self.loaded.tasks if task.row.name == row and task.name in self.done)
        return {task.seed: self.done[task.name] for task in tasks}


@dataclass(frozen=True)
class Pace:
    """What minutes are worked out by."""

    tflop_per_minute: float
    said: str

    def minutes(self, state: State, tasks: Iterable[Task]) -> float:
        return sum(state.tflop[task.row.name] for task in tasks) / self.tflop_per_minute


def look(loaded: LoadedStudy, results: Path) -> State:
    """Opens every row's shards and checks that it can train on them. Raises UserError and ShardError, naming
    the row."""
    missing: dict[str, str] = {}
    tflop: dict[str, float] = {}
    opened: dict[str, ShardSet] = {}
    counted: dict[tuple[object, ...], float] = {}
    for task in loaded.tasks:
        name = task.row.name
        if name in missing or name in tflop:
            continue
        if absent := _absent_shards(task):
            missing[name] = absent
            continue
        try:
            tflop[name] = _tflop(task, opened, counted)
        except (UserError, ShardError) as error:
            raise UserError(f"{loaded.path}: row {name}: {error}") from None
    found = find_results(results)
    tasks = {task.name: task for task in loaded.tasks}
    done = {
        name: one.result
        for name, one in found.items()
        if name in tasks and _is_of(one.result, tasks[name], opened)
    }
    stale = [one.path for name, one in found.items() if name not in done]
    return State(loaded, done, stale, missing, tflop)


def pace_of(state: State, processor: str, tflops: float) -> Pace:
    """By the rows done on this processor, with plan-run's arithmetic between rows; by `tflops` alone where
    there are none."""
    tasks = {task.name: task.row.name for task in state.loaded.tasks}
    timed = [
        (state.tflop[tasks[name]], one.minutes)
        for name, one in state.done.items()
        if one.minutes and one.processor == processor and tasks[name] in state.tflop
    ]
    if not timed:
        return Pace(60 * tflops, f"by plan-run's arithmetic at {tflops:g} TFLOPS (--tflops)")
    work, minutes = (sum(column) for column in zip(*timed, strict=True))
    return Pace(work / minutes, f"by the {len(timed)} runs that were done on such a processor")


def part_of(tasks: Sequence[Task], part: tuple[int, int] | None) -> list[Task]:
    """Every N-th of all tasks from the I-th, done or not: parts stay the same while they run."""
    number, count = part or (1, 1)
    return list(tasks[number - 1 :: count])


def _is_of(result: RowResult, task: Task, opened: Mapping[str, ShardSet]) -> bool:
    """Whether the task would be trained so again: its recipe, and its shards where they are here."""
    shards = opened.get(task.config.data.shards)
    same_data = shards is None or shards.split("train").fingerprint == result.shards
    same_network = result.network_of == task.row.network_of
    return same_data and same_network and same_training(result.recipe, task.config)


def _absent_shards(task: Task) -> str:
    """Why a row with shards of its own cannot run here; empty where it can."""
    location = task.row.shards
    if location is None or "://" in location or Path(location).exists():
        return ""
    return f"{location}: not there" + (f" ({task.row.note})" if task.row.note else "")


def _tflop(task: Task, opened: dict[str, ShardSet], counted: dict[tuple[object, ...], float]) -> float:
    """counted: a step's, of the networks and batches so far; of rows that differ in their loss alone, one is
    counted (it hardly counts beside the network)."""
    config = task.config
    data = config.data
    if data.shards not in opened:
        opened[data.shards] = open_recipe_shards(data)
        check_queries(opened[data.shards])
    if task.source is not None:
        return 0.0  # a gallery is ranked: seconds
    key = (data.shards, data.height, data.width, config.model, config.batch, config.loss.classifies)
    if key not in counted:
        everything = Rates(memory_gb=1e9)  # whether it fits is plan-run's to say
        plan: dict[str, Any] = run_plan(config, opened[data.shards].split("train"), 1, everything)
        counted[key] = plan["flops"]["network_tflop"] + plan["flops"]["loss_tflop"]
    return counted[key] * config.optimizer.steps
