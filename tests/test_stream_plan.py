"""Batches from whole shards in sequence: what the plan of a stream promises, for any shards and readers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskreid_shards import IdentityTable, Plan, ShardError, StreamPlan


def stream_plan(
    identities_of: list[int],
    counts: list[int],
    *,
    junk: int = 0,
    pool: int = 1000,
    world: int = 1,
    readers: int = 1,
    identities: int = 4,
    images: int = 2,
    passes: int = 1,
    seed: int = 0,
) -> StreamPlan:
    """Shards with so many identities each; the identities have `counts` images, over and over."""
    total = sum(identities_of)
    count = np.resize(counts, total)
    pids = np.random.default_rng(total).permutation(total) + 1
    shards = np.repeat(np.arange(len(identities_of)), identities_of)
    all_pids = np.r_[[-1] * junk, np.repeat(pids, count)].astype(np.int64)
    all_shards = np.r_[[0] * junk, np.repeat(shards, count)].astype(np.int64)
    table = IdentityTable.of_pids(all_pids)
    plan = Plan.pk(table, identities=identities, images=images, seed=seed, passes=passes)
    return StreamPlan.of(plan, all_shards, pool=pool, world=world, readers=readers)


@st.composite
def plans(draw: st.DrawFn) -> StreamPlan:
    world, readers = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (4, 1)]))
    share = draw(st.integers(1, 3))
    fewest = share * draw(st.integers(1, 3))
    shards = draw(st.integers(world * readers, 4 * world * readers))
    sizes = draw(st.lists(st.integers(fewest, 4 * fewest), min_size=shards, max_size=shards))
    return stream_plan(
        sizes,
        draw(st.lists(st.integers(1, 5), min_size=1, max_size=7)),
        junk=draw(st.integers(0, 3)),
        pool=share + draw(st.integers(0, 12)),
        world=world,
        readers=readers,
        identities=share * world,
        images=draw(st.integers(1, 4)),
        passes=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@given(plan=plans(), epoch=st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_exact_batches_of_different_identities(plan: StreamPlan, epoch: int) -> None:
    table, images = plan.batches.table, plan.batches.group_images[0]
    assert plan.steps_per_epoch >= 1
    for number in range(plan.batches.passes):
        met: list[int] = []
        for step in range(number * plan.steps_per_pass, (number + 1) * plan.steps_per_pass):
            ranks = [plan.rank_draws(epoch, step, rank, plan.world) for rank in range(plan.world)]
            assert {len(draws) for draws in ranks} == {plan.share * images}
            pids = np.concatenate([draws.pids for draws in ranks])
            samples = np.concatenate([draws.samples for draws in ranks])
            found, times = np.unique(pids, return_counts=True)
            assert len(found) == plan.batches.groups and (times == images).all() and (found > 0).all()
            for pid, sample in zip(pids.tolist(), samples.tolist(), strict=True):
                assert sample in table.images_of(pid)
            met += found.tolist()
        assert len(met) == len(set(met)) == plan.steps_per_pass * plan.batches.groups
    for rank in range(plan.world):
        with pytest.raises(IndexError):
            plan.rank_draws(epoch, plan.steps_per_epoch, rank, plan.world)


@given(plan=plans(), epoch=st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_readers_have_shards_of_their_own_and_pools_are_bounded(plan: StreamPlan, epoch: int) -> None:
    table = plan.batches.table
    for number in range(plan.batches.passes):
        dealt = plan.reader_shards(epoch, number)
        assert len(np.unique(dealt)) == dealt.size
        for rank in range(plan.world):
            for reader in range(plan.readers):
                first = number * plan.steps_per_pass + reader
                coming = plan.to_read(epoch, first, rank).tolist()
                assert len(set(coming)) == len(coming)
                kept: set[int] = set()
                at = 0
                for step in range(first, (number + 1) * plan.steps_per_pass, plan.readers):
                    draws = plan.rank_draws(epoch, step, rank, plan.world)
                    wanted = set(draws.samples.tolist())
                    while not wanted <= kept:
                        kept.add(coming[at])
                        at += 1
                    held = {pid for pid in table.pids.tolist() if kept & set(table.images_of(pid).tolist())}
                    assert len(held) <= plan.pool
                    kept -= wanted
                assert not kept and at == len(coming)  # all that is read is drawn


@given(plan=plans(), epoch=st.integers(0, 20), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_resumed_reader_reads_what_is_left(plan: StreamPlan, epoch: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    rank = data.draw(st.integers(0, plan.world - 1))
    fresh = StreamPlan(plan.batches, plan.shard_of, plan.pool, plan.world, plan.readers)
    number, in_pass = divmod(step, plan.steps_per_pass)
    stop = (number + 1) * plan.steps_per_pass
    rest = [fresh.rank_draws(epoch, s, rank, plan.world) for s in range(step, stop, plan.readers)]
    coming = fresh.to_read(epoch, step, rank)
    assert set(coming.tolist()) == {sample for draws in rest for sample in draws.samples.tolist()}
    # In the order of the whole pass.
    whole = plan.to_read(epoch, number * plan.steps_per_pass + in_pass % plan.readers, rank).tolist()
    assert [sample for sample in whole if sample in set(coming.tolist())] == coming.tolist()
    for s, draws in zip(range(step, stop, plan.readers), rest, strict=True):
        assert np.array_equal(draws.samples, plan.rank_draws(epoch, s, rank, plan.world).samples)


def test_later_steps_skip_whole_shards() -> None:
    plan = stream_plan([20] * 10, [3], pool=8)
    shards = [len(np.unique(plan.to_read(0, step, 0) // 60)) for step in range(plan.steps_per_pass)]
    assert plan.steps_per_pass == 50 and shards[0] == 10 and shards[-1] <= 2
    assert shards == sorted(shards, reverse=True)


def test_seeds_epochs_and_passes_differ() -> None:
    found = [
        tuple(stream_plan([8] * 8, [2], seed=seed, passes=2).rank_batch(epoch, step, 0, 1).tolist())
        for seed in range(3)
        for epoch in range(3)
        for step in (0, 16)
    ]
    assert len(set(found)) == len(found)


def test_all_shards_meet_and_all_identities_come() -> None:
    plan = stream_plan([7, 8, 9, 10, 11], [2], readers=2, pool=6)
    together, met = set(), set()
    for epoch in range(60):
        for shards in plan.reader_shards(epoch, 0).tolist():
            together.add(tuple(sorted(shards)))
        for step in range(plan.steps_per_epoch):
            met |= set(plan.rank_draws(epoch, step, 0, 1).pids.tolist())
    assert len(together) == 10 and len(met) == 45


def test_the_papers_batch() -> None:
    table = IdentityTable.of_pids(np.repeat(np.arange(1, 301), 12))
    paper = Plan.paper(table, groups=2, seed=0)
    plan = StreamPlan.of(paper, np.repeat(np.arange(4), 900), pool=80, world=2)
    draws = plan.rank_draws(0, 1, 1, 2)
    assert sorted(np.unique(draws.pids, return_counts=True)[1].tolist()) == [1] * 54 + [10]


def test_what_it_says() -> None:
    summary = stream_plan([10, 10, 10, 12, 12], [2], readers=2, pool=9).summary()
    assert (summary.steps_per_epoch, summary.dropped_identities) == (10, 14)
    assert summary.lines()[-1] == (
        "stream: 4 of 5 shards a pass, 2 for each of 1 ranks x 2 readers; pools of 9 identities"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world": 3}, "cannot be shared equally by 3 ranks"),
        ({"pool": 3}, "a pool of 3 identities, and a rank draws 4"),
        ({"readers": 4}, "3 shards with identities, to stream for 1 ranks x 4 readers; use fewer"),
        ({"readers": 3, "identities": 6}, "draws 6 identities in a step, and a reader may get 5 in its 1"),
    ],
)
def test_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        stream_plan([5, 6, 7], [2], **options)


def test_an_identity_in_two_shards_is_refused() -> None:
    plan = Plan.pk(IdentityTable.of_pids([1, 1, 2, 2]), identities=2, images=2, seed=0)
    with pytest.raises(ShardError, match="identity 1 lies in several shards"):
        StreamPlan.of(plan, [0, 1, 1, 1], pool=4, world=1)


def test_the_batches_never_change() -> None:
    """A run resumed under a later version must see the same ones."""
    pids = np.repeat(np.arange(1, 23), np.resize([3, 1, 2], 22))
    shards = np.searchsorted([4, 9, 15], pids - 1, "right")
    plan = Plan.pk(IdentityTable.of_pids(pids), identities=4, images=2, seed=5)
    stream = StreamPlan.of(plan, shards, pool=5, world=2, readers=2)
    found = [stream.rank_draws(1, step, rank, 2).samples.tolist() for step in range(2) for rank in range(2)]
    assert found == [[33, 33, 35, 34], [13, 12, 15, 15], [27, 27, 20, 18], [5, 4, 2, 1]]
