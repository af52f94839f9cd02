"""Training: batches -> embeddings -> loss -> step -> checkpoint. The same on one CPU and on many nodes."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maskreid_dist import exit_status
from maskreid_dist.config import Config, EngineConfig
from maskreid_dist.data.bad_samples import BadSamples, Replaced
from maskreid_dist.data.batches import Batch, end_workers, training_loader
from maskreid_dist.errors import SampleError, UserError
from maskreid_dist.model import Output, build_network
from maskreid_dist.model.checkpoint import Checkpoint
from maskreid_dist.model.initial import InitialWeights
from maskreid_dist.recipe import load_recipe
from maskreid_dist.run_directory import PROFILE, STOP
from maskreid_dist.training import ending
from maskreid_dist.training.divergence import Buffers, Divergence, FiniteWatch, update
from maskreid_dist.training.ema import start_ema
from maskreid_dist.training.engine import learning_rate, start_engine
from maskreid_dist.training.environment import place_of_process, tell_libraries
from maskreid_dist.training.evaluating import Evaluations
from maskreid_dist.training.gradient_cache import cached_backward, micro_batches
from maskreid_dist.training.launcher_watch import LauncherWatch
from maskreid_dist.training.leaving import leave_together, meet, part, watch_over
from maskreid_dist.training.memory import Memory, start_memory
from maskreid_dist.training.meter import Meter
from maskreid_dist.training.objective import objective
from maskreid_dist.training.origin import origin_of
from maskreid_dist.training.preparing import Preparation, initial_weights_alike, prepare_alike
from maskreid_dist.training.replicas import Replicas
from maskreid_dist.training.resuming import changes_of, checkpoint_to_continue, continued_engine
from maskreid_dist.training.run_folder import RunFolder, hold_run_folder
from maskreid_dist.training.run_log import RunLog
from maskreid_dist.training.saving import save_checkpoint
from maskreid_dist.training.step_clock import AWAY, StepClock
from maskreid_dist.training.step_profile import StepProfile
from maskreid_dist.training.world import StopRequest, World, start_world
from maskreid_kernels.ranks import watched_gathers
from maskreid_shards import Split
from maskreid_shards.atomic import naming


def train(recipe: Path, overrides: Sequence[str], runs: Path, resume: bool, profile: bool = False) -> int:
    """Train a recipe in `runs/<name>`; returns the exit status (maskreid_dist.exit_status). All ranks call
    it.

    resume: continue from the newest checkpoint that verifies, from the start if there is none; without it a
    run directory that holds checkpoints is an error. profile: trace a few steps of rank 0. Whatever ends it
    on any rank is printed, once a machine. Raises UserError: the launcher's variables are wrong.
    """
    place = place_of_process()
    launchers = LauncherWatch(place.rank)
    launchers.start()
    tell_libraries(place)
    timeout_s = _timeout_s(recipe, overrides)
    meeting = meet(place, timeout_s)
    if meeting is None:
        return exit_status.START_AGAIN
    folder: RunFolder | None = None
    try:
        meeting.join()
        watch_over(meeting)
        prepared = prepare_alike(meeting, recipe, overrides, resume)
        config = prepared.config
        folder = hold_run_folder(meeting, runs / config.name, resume, config.run.local_checkpoints)
        if meeting.is_first:
            ending.begin(folder.path)
        status = _train(prepared, folder, start_world(meeting, prepared.device), launchers, profile)
        if meeting.is_first:
            ending.end(folder.path, status)
    except Exception as error:  # one that this rank alone may meet, too: the others are told
        status = leave_together(meeting, error)
        if folder and meeting.is_first:
            ending.end(folder.path, status)
        return status
    finally:
        end_workers()
    part(meeting)
    if status == exit_status.STOPPED:
        ending.stop_agent(place)
    return status


def _timeout_s(recipe: Path, overrides: Sequence[str]) -> int:
    """How long to wait for the other ranks: known before what is wrong with the recipe can be told them."""
    try:
        return load_recipe(recipe, overrides).engine.collective_timeout_s
    except UserError:
        return EngineConfig().collective_timeout_s


def _train(
    prepared: Preparation, folder: RunFolder, world: World, launchers: LauncherWatch, profile: bool
) -> int:
    """The exit status; all ranks take part."""
    training = _Training(prepared, folder, world)
    launchers.ask = training.stop.ask
    first = RunLog(folder.path, training.start, training.last, prepared.config) if world.is_first else None
    with first or nullcontext() as log:
        training.introduce(log)
        stopped = training.run(log, profile)
        if log:
            log.say_all(training.bad_samples.lines())
        if log and stopped:
            log.say(f"stopped on request after step {training.step} of {training.last}, saved")
    if world.is_first:
        training.stop.file.unlink(missing_ok=True)
    return exit_status.STOPPED if training.step < training.last else exit_status.DONE


class _Training:
    """One rank's training, from where its checkpoint left it: `step` steps are done. All ranks take part in
    each method."""

    def __init__(self, prepared: Preparation, folder: RunFolder, world: World) -> None:
        config, split = prepared.config, prepared.split
        self.config, self.plan, self.world = config, prepared.plan, world
        checkpoint = checkpoint_to_continue(config, folder, split.fingerprint, world.meeting)
        self.classes = identity_classes(split)
        head_classes = len(self.classes) if config.loss.classifies else 0
        self.engine, self.initial = _start_engine(prepared, head_classes, checkpoint, folder, world)
        self.memory = start_memory(config.loss, checkpoint, world)
        self.ema = start_ema(config, self.engine.module, checkpoint)
        self.step = self.start = checkpoint.step if checkpoint else 0
        self.last = config.optimizer.steps
        self.origin, self.changes = origin_of(world.meeting, self.last), changes_of(checkpoint, config)
        self.evaluations = Evaluations(config, prepared.validation, world, folder, ema=self.ema)
        self.evaluations.continue_from(self.start)
        self.stop = StopRequest(folder.path / STOP)
        self.stop.listen()
        with naming(Path("/dev/shm")):  # where the workers' semaphores and batches are
            loader = training_loader(
                split, self.plan, config, self.start, world.rank, world.size, world.device
            )
            self.batches = iter(loader)
        self.run_path = folder.path
        self.clock = StepClock(world.device)
        self.meter = Meter(self.clock, world.device)
        self.bad_samples = BadSamples(config.data.bad_samples)
        self.watch = FiniteWatch(world.device)
        self.divergence = Divergence(folder.path, config.run, split, self.plan, world)
        self.replicas = Replicas(self.start)
        weights = self.initial.facts() if self.initial else checkpoint and checkpoint.initial_weights
        facts = {"classes": head_classes, "shards_fingerprint": split.fingerprint, "changes": self.changes}
        facts |= {"initial_weights": weights, "origin": self.origin, "data": prepared.data}
        self.save = partial(
            save_checkpoint, self.engine, folder,
            config=config, facts=facts, world=world, memory=self.memory, ema=self.ema,
        )  # fmt: skip

    def introduce(self, log: RunLog | None) -> None:
        """What is about to be done, on rank 0's terminal and in the run directory."""
        if not log:
            return
        log.describe(self.origin, self.config)
        log.say(f"run directory: {self.run_path}")
        ranks = f"ranks: {self.world.size}, threads of rank 0: {torch.get_num_threads()}"
        steps = f"steps: {self.start} of {self.last} done"
        log.say_all([*self.plan.summary().lines(), f"{ranks}, {steps}"])
        log.say_changes(self.start, self.changes)
        log.say_all(self.initial.lines() if self.initial else [])

    def run(self, log: RunLog | None, profile: bool) -> bool:
        """Train to the last step, or until any rank is asked to stop: then True, and all is saved."""
        profiled = None
        if log and profile:
            profiled = StepProfile(self.run_path / PROFILE, self.start, self.clock, log.say)
        if self.evaluations.missing(self.start, log.evaluated() if log else ()):
            self._evaluate(log, saved=True)
        stopping = False
        while self.step < self.last and not stopping:
            batch, stopping = self._next_batch(log)
            self._compute(batch, log)
            if profiled:
                profiled.step()
            if log:
                log.advance(self.step)
            self._keep(log, stopping)
        if profiled:
            profiled.close()
        return stopping

    def _next_batch(self, log: RunLog | None) -> tuple[Batch, bool]:
        """This rank's batch, and whether any rank was asked to stop after it."""
        pulse = self.world.meeting.pulse
        pulse.doing = f"step {self.step + 1}, reading its batch"
        with self.clock.phase("data"):
            item = next(self.batches)
        pulse.doing = f"step {self.step + 1}, waiting for the others"
        with self.clock.phase("ranks"):
            batch, stopping, news = _agree_on_step(item, self.stop, self.bad_samples, self.world)
        if log and news:
            log.say_all(news)
        return batch, stopping

    def _compute(self, batch: Batch, log: RunLog | None) -> None:
        """A step; where its gradients are not finite it is passed over, as far as the recipe allows."""
        self.world.meeting.pulse.doing = f"step {self.step + 1}, computing"
        scalars, applied = training_step(
            self.engine, batch, self.classes, self.config, self.step,
            self.watch, self.world, self.memory, self.clock,
        )  # fmt: skip
        self.clock.end_step()
        if applied:
            if self.ema:
                self.ema.update(self.engine.module, self.step)
            self.meter.add(scalars, len(batch.pids_B) * self.world.size)
        else:
            skipped = self.divergence.skip(self.watch, self.step)
            if log:
                log.say_skipped(skipped)
        self.step += 1
        self.world.meeting.pulse.doing = f"after step {self.step}"

    def _keep(self, log: RunLog | None, stopping: bool) -> None:
        """What a step is followed by, when it is due: the log's means, a look at the weights, a save, an
        evaluation."""
        run, step = self.config.run, self.step
        saves = stopping or step == self.last or step % run.checkpoint_every == 0
        if self.meter.steps and (saves or step % run.log_every == 0):
            self._log_means(log)
        evaluates = self.evaluations.due(step) and not stopping  # made up for on resuming
        if saves or evaluates or (run.check_every and step % run.check_every == 0):
            if broken := self.replicas.check(self.engine.module, self.world, step):
                self.divergence.stop(self.watch, step, broken)
        if saves:
            self.world.meeting.pulse.doing = f"after step {step}, saving"
            with self.clock.phase(AWAY):
                self.save(step)
        if evaluates:
            self._evaluate(log, saved=saves)

    def _log_means(self, log: RunLog | None) -> None:
        rate = learning_rate(self.config.optimizer, self.step - 1)
        means = self.meter.take(rate, self.step // self.plan.steps_per_epoch)
        if not math.isfinite(means["loss"]):  # the same value on every rank
            self.divergence.stop(self.watch, self.step, [])
        if log:
            log.write(self.step, means)

    def _evaluate(self, log: RunLog | None, *, saved: bool) -> None:
        """Rank the validation gallery; a new best that is not saved yet is saved then."""
        self.world.meeting.pulse.doing = f"after step {self.step}, evaluating"
        save = None if saved else partial(self.save, self.step)
        with self.clock.phase(AWAY):
            self.evaluations.make(self.engine.module, self.step, save, log.write_evaluation if log else None)


def _start_engine(
    prepared: Preparation, classes: int, checkpoint: Checkpoint | None, folder: RunFolder, world: World
) -> tuple[Any, InitialWeights | None]:
    """The engine of a new network, and what model.init gave it, or of the checkpoint's. All take part."""
    config = prepared.config
    torch.manual_seed(config.seed)  # every rank starts from the same weights
    network = build_network(config, classes)
    rows = int(prepared.plan.summary().batch) // world.size
    run = folder.path if world.is_first else None
    if checkpoint:
        return continued_engine(network, config, rows, world.size, run, checkpoint), None
    initial = None
    if config.model.init:
        initial = initial_weights_alike(network, Path(config.model.init), world.meeting)
    return start_engine(network, config, rows, world.size, run), initial


def _agree_on_step(
    item: Batch | SampleError, stop: StopRequest, bad_samples: BadSamples, world: World
) -> tuple[Batch, bool, list[str]]:
    """This rank's batch, whether any rank was asked to stop, and news of bad samples. All ranks take part.

    Raises UserError on every rank if any rank has no batch or the bad-sample budget is spent.
    """
    problem = str(item) if isinstance(item, SampleError) else None
    replaced = () if isinstance(item, SampleError) else item.replaced
    failed, stopping, some_replaced = world.any_ranks(problem is not None, stop.here(world), bool(replaced))
    if failed:
        world.meeting.refuse(problem)
    assert isinstance(item, Batch)
    news = []
    if some_replaced:
        gathered = chain.from_iterable(world.meeting.gather(replaced))
        news = bad_samples.add(Replaced(*fields) for fields in gathered)
    return item, stopping, news


def training_step(
    engine: Any,
    batch: Batch,
    classes: Tensor,
    config: Config,
    step: int,
    watch: FiniteWatch,
    world: World,
    memory: Memory | None = None,
    clock: StepClock | None = None,
) -> tuple[dict[str, Tensor], bool]:
    """A single training step; returns what to log as 0-d tensors on the device, and whether the weights were
    updated: not where gradients are not finite (divergence.update). All ranks take part.

    memory: the recipe's cross-batch memory; keeps the rows of a step that was applied. clock: learns how
    long the step's phases take.

    The batch is global: the loss sees every rank's embeddings, and its gradient is scaled such that
    DeepSpeed's average over ranks is the gradient of one process on the whole batch.
    """
    labels = torch.searchsorted(classes, batch.pids_B).to(world.device, non_blocking=True)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(config.optimizer, step)
    split = config.batch.micro_images > 0
    before = Buffers(engine.module) if split or config.run.non_finite == "skip" else None
    clock = clock or StepClock(world.device)
    forward = clock.timed("forward", partial(_forward, engine, batch, config.seed, step, world))
    past = memory.at(step) if memory else None
    loss_of = clock.timed(
        "loss", partial(objective, labels_B=labels, config=config.loss, group=dist.group.WORLD, past=past)
    )
    with watched_gathers(partial(clock.phase, "gather")):
        if split:
            assert before is not None
            parts = micro_batches(len(labels), config.batch.micro_images)
            with clock.phase("backward"):
                output, loss, scalars = cached_backward(engine, parts, forward, loss_of, before)
        else:
            output = forward(0, slice(None))
            loss, scalars = loss_of(output)
            with clock.phase("backward"):
                engine.backward(loss)
    watch.note(step, loss, output.embedding_BD)
    with clock.phase("optimizer"):
        applied = update(engine, config.run, world, before)
    if memory and applied:
        memory.keep(output.embedding_BD, labels)
    return {"loss": loss.detach(), **scalars}, applied


def _forward(engine: Any, batch: Batch, seed: int, step: int, world: World, part: int, rows: slice) -> Output:
    """The network on the rows of a part of a batch; dropout is the same after a resume, and in a second
    pass."""
    # Channels last is faster on CPUs and tensor cores; the weights stay as they are, DeepSpeed wants them
    # contiguous.
    image = batch.image_B3HW[rows].to(world.device, non_blocking=True, memory_format=torch.channels_last)
    mask = batch.mask_B1HW[rows].to(world.device, non_blocking=True)
    torch.manual_seed(dropout_seed(seed, step, world.rank, part))
    output: Output = engine(image, mask)
    return output


def dropout_seed(seed: int, step: int, rank: int, part: int = 0) -> int:
    """Seed of everything random in a step on a rank, in a micro batch of it, below 2**63."""
    return ((((part << 32) + seed) * 1_000_003 + step) * 65_537 + rank) % 2**63


def identity_classes(split: Split) -> Tensor:
    """(C,) int64: the identities in order; an identity's class is its place here.
    Junk and distractors are none."""
    return torch.from_numpy(split.identities[split.identities > 0].copy())
