"""Training: batches -> embeddings -> loss -> step -> checkpoint. The same on one CPU and on many nodes."""

import math
import socket
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
from maskreid_dist.training.leaving import last_words, leave_together, part, print_errors, watch_over
from maskreid_dist.training.meeting import Meeting, open_store
from maskreid_dist.training.memory import Memory, start_memory
from maskreid_dist.training.meter import Meter
from maskreid_dist.training.objective import objective
from maskreid_dist.training.origin import origin_of
from maskreid_dist.training.preparing import Preparation, initial_weights_alike, prepare_alike
from maskreid_dist.training.replicas import Replicas
from maskreid_dist.training.resuming import changes_of, checkpoint_to_continue, load_engine
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
    try:
        meeting = Meeting(place, open_store(place, timeout_s), timeout_s)
    except OSError as error:  # nobody to tell
        print_errors([f"rank {place.rank} on {socket.gethostname()}: {last_words(error).text}"])
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
    config, split, plan = prepared.config, prepared.split, prepared.plan
    run = folder.path
    checkpoint = checkpoint_to_continue(config, folder, split.fingerprint, world.meeting)
    classes = identity_classes(split)
    head_classes = len(classes) if config.loss.classifies else 0
    engine, initial = _start_engine(prepared, head_classes, checkpoint, folder, world)
    memory = start_memory(config.loss, checkpoint, world)
    step = start = checkpoint.step if checkpoint else 0
    last = config.optimizer.steps
    changes = changes_of(checkpoint, config)
    origin = origin_of(world.meeting, last)
    facts = {"classes": head_classes, "shards_fingerprint": split.fingerprint, "changes": changes}
    facts["initial_weights"] = initial.facts() if initial else checkpoint and checkpoint.initial_weights
    facts |= {"origin": origin}
    ema = start_ema(config, engine.module, checkpoint)
    evaluations = Evaluations(config, prepared.validation, world, folder, ema=ema)
    evaluations.continue_from(start)
    save = partial(
        save_checkpoint, engine, folder, config=config, facts=facts, world=world, memory=memory, ema=ema
    )
    stop = StopRequest(run / STOP)
    stop.listen()
    launchers.ask = stop.ask
    with naming(Path("/dev/shm")):  # where the workers' semaphores and batches are
        batches = iter(training_loader(split, plan, config, start, world.rank, world.size, world.device))
    with RunLog(run, start, last, config) if world.is_first else nullcontext() as log:
        if log:
            log.describe(origin, config)
            log.say(f"run directory: {run}")
            ranks = f"ranks: {world.size}, threads of rank 0: {torch.get_num_threads()}"
            log.say_all([*plan.summary().lines(), f"{ranks}, steps: {start} of {last} done"])
            log.say_changes(start, changes)
            log.say_all(initial.lines() if initial else [])
        clock = StepClock(world.device)
        meter = Meter(clock, world.device)
        profiled = StepProfile(run / PROFILE, start, clock, log.say) if log and profile else None
        bad_samples = BadSamples(config.data.bad_samples)
        watch = FiniteWatch(world.device)
        divergence = Divergence(run, config.run, split, plan, world)
        replicas = Replicas(start)
        pulse = world.meeting.pulse
        stopping = False
        if evaluations.missing(start, log.evaluated() if log else ()):
            pulse.doing = f"after step {start}, evaluating"
            with clock.phase(AWAY):
                evaluations.make(engine.module, start, None, log.write_evaluation if log else None)
        while step < last and not stopping:
            pulse.doing = f"step {step + 1}, reading its batch"
            with clock.phase("data"):
                item = next(batches)
            pulse.doing = f"step {step + 1}, waiting for the others"
            with clock.phase("ranks"):
                batch, stopping, news = _agree_on_step(item, stop, bad_samples, world)
            if log and news:
                log.say_all(news)
            pulse.doing = f"step {step + 1}, computing"
            scalars, applied = training_step(
                engine, batch, classes, config, step, watch, world, memory, clock
            )
            clock.end_step()
            if profiled:
                profiled.step()
            if applied:
                if ema:
                    ema.update(engine.module, step)
                meter.add(scalars, len(batch.pids_B) * world.size)
            else:
                skipped = divergence.skip(watch, step)
                if log:
                    log.say_skipped(skipped)
            step += 1
            if log:
                log.advance(step)
            pulse.doing = f"after step {step}"
            saves = stopping or step == last or step % config.run.checkpoint_every == 0
            if meter.steps and (saves or step % config.run.log_every == 0):
                means = meter.take(learning_rate(config.optimizer, step - 1), step // plan.steps_per_epoch)
                if not math.isfinite(means["loss"]):  # the same value on every rank
                    divergence.stop(watch, step, [])
                if log:
                    log.write(step, means)
            evaluates = evaluations.due(step) and not stopping  # made up for on resuming
            if saves or evaluates or (config.run.check_every and step % config.run.check_every == 0):
                if broken := replicas.check(engine.module, world, step):
                    divergence.stop(watch, step, broken)
            if saves:
                pulse.doing = f"after step {step}, saving"
                with clock.phase(AWAY):
                    save(step)
            if evaluates:
                pulse.doing = f"after step {step}, evaluating"
                save_it = None if saves else partial(save, step)
                with clock.phase(AWAY):
                    evaluations.make(engine.module, step, save_it, log.write_evaluation if log else None)
        if profiled:
            profiled.close()
        if log:
            log.say_all(bad_samples.lines())
        if log and stopping:
            log.say(f"stopped on request after step {step} of {last}, saved")
    if world.is_first:
        stop.file.unlink(missing_ok=True)
    return exit_status.STOPPED if step < last else exit_status.DONE


def _start_engine(
    prepared: Preparation, classes: int, checkpoint: Checkpoint | None, folder: RunFolder, world: World
) -> tuple[Any, InitialWeights | None]:
    """The engine of a new network, and what model.init gave it, or of the checkpoint's. All take part."""
    config = prepared.config
    torch.manual_seed(config.seed)  # every rank starts from the same weights
    network = build_network(config, classes)
    initial = None
    if config.model.init and not checkpoint:
        initial = initial_weights_alike(network, Path(config.model.init), world.meeting)
    rows = int(prepared.plan.summary().batch) // world.size
    engine = start_engine(network, config, rows, world.size, folder.path if world.is_first else None)
    if checkpoint:
        load_engine(engine, checkpoint)
    return engine, initial


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
