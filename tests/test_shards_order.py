"""The plan's properties, on random identities, without any I/O."""

import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskreid_shards import IdentityTable, Plan, ShardError, augmentation_key
from maskreid_shards.keyed import keyed_bits


def table_of(counts: list[int], shuffle: int = 0) -> IdentityTable:
    """Identities 10, 11, ... with these many images, laid out in a shuffled order."""
    pids = np.random.default_rng(shuffle).permutation(np.arange(10, 10 + len(counts)))
    return IdentityTable.of_pids(np.repeat(pids, [counts[pid - 10] for pid in pids]))


def pid_of_sample(table: IdentityTable) -> dict[int, int]:
    return {int(sample): int(pid) for pid in table.pids for sample in table.images_of(int(pid))}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    counts = draw(st.lists(st.integers(1, 9), min_size=12, max_size=40))
    table = table_of(counts, draw(st.integers(0, 3)))
    seed = draw(st.integers(0, 2**63))
    passes = draw(st.integers(1, 3))
    if draw(st.booleans()):
        return Plan.pk(
            table,
            identities=draw(st.sampled_from([1, 2, 4, 6, 12])),
            images=draw(st.integers(1, 6)),
            seed=seed,
            few_images=draw(st.sampled_from(["repeat", "all"])),
            passes=passes,
        )
    return Plan.paper(
        table, groups=draw(st.integers(1, 3)), seed=seed, passes=passes, anchor_images=4, others=3
    )


@given(plan=plans(), epoch=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_ranks_share_the_same_global_batch(plan: Plan, epoch: int) -> None:
    worlds = [world for world in range(1, plan.groups + 1) if plan.groups % world == 0]
    for step in {0, plan.steps_per_epoch - 1}:
        whole = plan.global_draws(epoch, step)
        for world in worlds:
            parts = [plan.rank_draws(epoch, step, rank, world) for rank in range(world)]
            for field in ("samples", "pids", "k", "seeds"):
                assert np.array_equal(
                    np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field)
                )
            assert np.array_equal(plan.rank_batch(epoch, step, world - 1, world), parts[-1].samples)


@given(plan=plans(), epoch=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_the_content_of_an_epoch(plan: Plan, epoch: int) -> None:
    table = plan.table
    owner = pid_of_sample(table)
    count = dict(zip(table.pids.tolist(), table.count.tolist(), strict=True))
    sizes = plan.group_images * plan.groups
    visits: list[int] = []
    for step in range(plan.steps_per_epoch):
        draws = plan.global_draws(epoch, step)
        pids, samples = draws.pids.tolist(), draws.samples.tolist()
        assert [owner[sample] for sample in samples] == pids
        in_order = list(dict.fromkeys(pids))
        assert len(in_order) == plan.batch_identities == 1 + sum(a != b for a, b in pairwise(pids))
        for pid, size in zip(in_order, sizes, strict=True):
            mine = [sample for sample, other in zip(samples, pids, strict=True) if other == pid]
            assert len(mine) == (size if plan.few_images == "repeat" else min(size, count[pid]))
            assert len(set(mine)) == min(len(mine), count[pid])  # repeated only when there are too few
        visits += in_order
    # A pass visits no identity twice and drops fewer than a batch of them.
    per_pass = len(visits) // plan.passes
    for number in range(plan.passes):
        one = visits[number * per_pass : (number + 1) * per_pass]
        assert len(set(one)) == len(one) == len(table) - plan.dropped_per_pass
    assert plan.dropped_per_pass < plan.batch_identities
    with pytest.raises(IndexError):
        plan.global_batch(epoch, plan.steps_per_epoch)


@given(plan=plans())
@settings(max_examples=50, deadline=None)
def test_pure_and_independent_of_call_order(plan: Plan) -> None:
    copy = type(plan)(plan.table, plan.groups, plan.group_images, plan.seed, plan.few_images, plan.passes)
    steps = [(epoch, step) for epoch in (0, 1, 5) for step in range(plan.steps_per_epoch)]
    forward = {at: plan.global_draws(*at) for at in steps}
    for at in reversed(steps):
        again = copy.global_draws(*at)
        assert np.array_equal(again.samples, forward[at].samples) and np.array_equal(
            again.seeds, forward[at].seeds
        )


def test_epochs_and_seeds_differ() -> None:
    table = table_of([6] * 40)
    batches = [
        tuple(Plan.pk(table, identities=8, images=4, seed=seed).global_batch(epoch, 0).tolist())
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(batches)) == 25


def test_passes_visit_every_image() -> None:
    table = table_of([7, 3, 8, 1, 5, 8])
    plan = Plan.pk(table, identities=3, images=2, seed=1, passes=4)  # ceil(8 / 2); 6 identities: none dropped
    for epoch in range(5):
        batches = [plan.global_batch(epoch, step) for step in range(plan.steps_per_epoch)]
        assert set(np.concatenate(batches).tolist()) == set(range(32))


def test_the_order_is_uniform() -> None:
    """Each identity is first, and each image of it is first, about equally often over epochs."""
    plan = Plan.pk(table_of([4] * 8), identities=1, images=1, seed=3)
    first = [plan.global_draws(epoch, 0) for epoch in range(4000)]
    by_pid = np.bincount([int(draws.pids[0]) - 10 for draws in first], minlength=8)
    by_sample = np.bincount([int(draws.samples[0]) for draws in first], minlength=32)
    assert ((by_pid - 500) ** 2 / 500).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001
    assert ((by_sample - 125) ** 2 / 125).sum() < 61.1  # 31 degrees of freedom, p = 0.001


def test_few_images_policies() -> None:
    table = table_of([1, 2, 5, 5, 5, 5])
    repeat = Plan.pk(table, identities=6, images=4, seed=0)
    assert len(repeat.global_batch(0, 0)) == 24
    everything = Plan.pk(table, identities=6, images=4, seed=0, few_images="all")
    assert len(everything.global_batch(0, 0)) == 1 + 2 + 4 * 4
    skip = Plan.pk(table, identities=2, images=4, seed=0, few_images="skip")
    seen = {int(pid) for step in range(skip.steps_per_epoch) for pid in skip.global_draws(0, step).pids}
    assert seen == {12, 13, 14, 15}
    summary = skip.summary()
    assert (
        summary.identities,
        summary.taking_part,
        summary.few_image_identities,
        summary.steps_per_epoch,
    ) == (6, 4, 2, 2)
    assert any("too few images: 2 (left out)" in line for line in summary.lines())
    assert Plan.pk(table, identities=4, images=2, seed=0).summary().dropped_identities == 2


def test_the_papers_batch() -> None:
    table = table_of([12] * 150)
    plan = Plan.paper(table, groups=2, seed=0)
    assert plan.steps_per_epoch == 1 and plan.summary().batch == 128
    for rank in range(2):
        draws = plan.rank_draws(0, 0, rank, 2)
        counts = np.unique(draws.pids, return_counts=True)[1]
        assert sorted(counts.tolist()) == [1] * 54 + [10]
        assert (draws.pids[:10] == draws.pids[0]).all()
    assert len(np.unique(plan.global_draws(0, 0).pids)) == 110
    few = Plan.paper(table_of([3] * 60), groups=1, seed=0)
    assert len(few.global_batch(0, 0)) == 3 + 54


def test_repeated_images_have_augmentations_of_their_own() -> None:
    draws = Plan.pk(table_of([1, 1, 2]), identities=3, images=8, seed=0, passes=3).global_draws(4, 1)
    assert len(set(draws.seeds.tolist())) == len(draws) == 24
    for pid, k, seed in zip(draws.pids.tolist(), draws.k.tolist(), draws.seeds.tolist(), strict=True):
        assert int(augmentation_key(0, 4, pid, k)) == seed


def test_junk_and_distractors_take_no_part() -> None:
    table = IdentityTable.of_pids([5, 5, 0, 0, 0, -1, 7])
    plan = Plan.pk(table, identities=2, images=1, seed=0)
    assert set(plan.global_draws(0, 0).pids.tolist()) == {5, 7}
    with pytest.raises(ShardError, match="takes 3 identities, the split has 2"):
        Plan.pk(table, identities=3, images=1, seed=0)


@pytest.mark.parametrize("world", [0, 3, 5, 8, 24])
def test_a_world_that_does_not_divide(world: int) -> None:
    plan = Plan.pk(table_of([2] * 30), identities=12, images=2, seed=0)
    if world in (3,):
        plan.check_world(world)
        return
    with pytest.raises(ShardError, match=rf"12 identities \(P\).* {world} ranks; .*1, 2, 3, 4, 6, 12 ranks"):
        plan.rank_batch(0, 0, 0, world)


def test_wrong_arguments() -> None:
    table = table_of([2] * 4)
    for arguments in ({"identities": 0}, {"images": 0}, {"passes": 0}, {"few_images": "cycle"}):
        with pytest.raises(ShardError, match=r"must be at least 1|use one of"):
            Plan.pk(table, **{"identities": 2, "images": 2, "seed": 0, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="with enough images"):
        Plan.pk(table, identities=2, images=3, seed=0, few_images="skip")
    with pytest.raises(ShardError, match="identity 3 are not adjacent"):
        IdentityTable.of_pids([3, 4, 3])


def test_a_million_identities() -> None:
    count = np.random.default_rng(0).zipf(1.5, 1_000_000).clip(1, 500)
    table = IdentityTable(np.arange(1, 1_000_001), np.cumsum(count) - count, count)
    plan = Plan.pk(table, identities=64, images=4, seed=0)
    tracemalloc.start()
    plan.global_batch(3, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6
    # Whole arrays at a time: what Python itself does grows with P, not with the identities.
    small = Plan.pk(table_of([2] * 1000), identities=64, images=4, seed=0)
    assert calls(lambda: plan.global_batch(4, 0)) < 2 * calls(lambda: small.global_batch(4, 0)) < 20_000


def calls(function: Callable[[], object]) -> int:
    """How many functions of Python and of C it calls in all."""
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counted


def test_keyed_bits_never_change() -> None:
    """A run resumed under a later version must see the same batches: these values are part of the format."""
    mask = 2**64 - 1

    def slow(*words: int) -> int:
        bits = 0
        for word in words:
            mixed = ((bits ^ (word & mask)) + 0x9E3779B97F4A7C15) & mask
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
            bits = mixed ^ (mixed >> 31)
        return bits

    assert int(keyed_bits(0)) == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    assert int(keyed_bits(1, -1, 2**63, 7)) == slow(1, -1, 2**63, 7)
    words = np.array([-1, 0, 5, 2**62])
    assert keyed_bits(9, words, 3).tolist() == [slow(9, int(word), 3) for word in words]
