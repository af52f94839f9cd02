"""Retrieval does not depend on tiling, sharding, precision or copies: ties, near ties, failures on one
rank."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gloo import run_ranks
from maskreid_dist.retrieval import (
    RetrievalResult,
    counting,
    counting_compared,
    counting_sorted,
    evaluate,
    evaluate_retrieval,
    good_images,
    tile,
    whole_lists,
)
from maskreid_dist.retrieval.counting_compared import ComparedPlaces, compared_bounds
from maskreid_dist.retrieval.counting_sorted import _find
from maskreid_dist.retrieval.distance import (
    COLUMN_BITS,
    DOUBLE,
    SINGLE,
    Metric,
    block_distances,
    pair_distances,
    place_bound,
    places,
    precisions,
    product_bound,
    row_norms,
)
from maskreid_dist.retrieval.inputs import ImageSet, image_set
from maskreid_dist.retrieval.pairs import GalleryIndex, block_pairs
from test_retrieval import slow

Array = NDArray[Any]
Data = tuple[Array, Array, Array, Array, Array, Array]


def copies(seed: int = 0, distinct: int = 40, gallery: int = 200, queries: int = 30, dims: int = 24) -> Data:
    """A gallery in which every image occurs about five times, under different identities: (q, qp, qc, g, gp,
    gc)."""
    generator = np.random.default_rng(seed)
    pictures = generator.normal(size=(distinct, dims)).astype(np.float32)
    return (
        generator.normal(size=(queries, dims)).astype(np.float32),
        generator.integers(1, 6, queries),
        generator.integers(1, 4, queries),
        pictures[generator.integers(0, distinct, gallery)],
        generator.integers(-1, 6, gallery),
        generator.integers(1, 4, gallery),
    )


def mean_ap_by_distinct_order(data: Data) -> float:
    """Slow AP by hits: the distances of the distinct pictures are far apart, so float64 sorts them, copies by
    index."""
    q, qp, qc, g, gp, gc = data
    unit_q, unit_g = (
        x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (q, g)
    )
    distance = np.round(1 - np.einsum("qd,gd->qg", unit_q, unit_g), 12)
    scores = []
    for row in range(len(q)):
        order = sorted(range(len(g)), key=lambda i: (distance[row, i], i))
        listed = [i for i in order if gp[i] != -1 and not (gp[i] == qp[row] and gc[i] == qc[row])]
        places = [place for place, i in enumerate(listed, 1) if gp[i] == qp[row]]
        if places:
            scores.append(sum(n / place for n, place in enumerate(places, 1)) / len(places))
    return float(np.mean(scores))


def same(a: RetrievalResult, b: RetrievalResult) -> bool:
    equal = np.array_equal(a.average_precision, b.average_precision, equal_nan=True)
    return equal and np.array_equal(a.cmc, b.cmc) and a.mINP == b.mINP and a.mAP_trapezoid == b.mAP_trapezoid


@pytest.mark.parametrize("seed", range(4))
def test_copies_in_one_tile_are_ordered_by_index(seed: int) -> None:
    data = copies(seed)
    assert evaluate_retrieval(*data).mAP == pytest.approx(mean_ap_by_distinct_order(data), abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("block", "tile"), [(1, 1), (7, 3), (30, 64), (256, 199)])
def test_no_tiling_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, block: int, tile: int
) -> None:
    whole = evaluate_retrieval(*copies(), metric=metric)
    monkeypatch.setattr(evaluate, "QUERY_BLOCK", block)
    monkeypatch.setattr(evaluate, "GALLERY_TILE", tile)
    assert same(evaluate_retrieval(*copies(), metric=metric), whole)


def test_torch_and_numpy_agree_and_dtypes_widen_exactly() -> None:
    q, qp, qc, g, gp, gc = copies()
    whole = evaluate_retrieval(q, qp, qc, g, gp, gc)
    tensors = [torch.from_numpy(x) for x in (q, qp, qc, g, gp, gc)]
    assert same(evaluate_retrieval(*tensors), whole)
    assert same(evaluate_retrieval(q.astype(float), qp, qc, g.astype(float), gp, gc), whole)


@pytest.mark.parametrize("many_bounds", [0, 128])
def test_keys_below_each_bound_are_counted(many_bounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, and a block in one call."""
    monkeypatch.setattr(counting_sorted, "_MANY_BOUNDS", many_bounds)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(0, 50, (9, 300), generator=generator, dtype=torch.int32).sort(dim=1).values
    keys[:, -30:] = torch.iinfo(torch.int32).max
    low = torch.randint(0, 50, (9, 6), generator=generator, dtype=torch.int32).sort(dim=1).values
    high = low + torch.arange(6, dtype=torch.int32) % 3  # some intervals empty
    number = np.array([6, 6, 6, 6, 3, 6, 0, 6, 6])
    found = _find(keys, low, high, number)
    for row, used in enumerate(number):
        for bound, at_BR in ((low, found.start_BR), (high, found.stop_BR)):
            expected = [(keys[row] < t).sum().item() for t in bound[row, :used]] + [300] * (6 - used)
            assert at_BR[row].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_places_are_compared_with_every_good_image(dtype: torch.dtype) -> None:
    """Places at the bounds, good images at one place, overlapping bounds, unlisted rows, no good image."""
    generator = np.random.default_rng(0)
    number_B = np.array([7, 1, 0, 7, 3, 255])
    for rows in (1, 2, 300):
        product = torch.from_numpy(generator.integers(-20, 20, (6, rows))).to(dtype)
        product[generator.random((6, rows)) < 0.1] = torch.inf
        middle = np.sort(generator.integers(-25, 25, (6, 255)), axis=1).astype(product.numpy().dtype)
        found = ComparedPlaces(product.clone(), middle - 2, middle + 1, number_B)
        (items,) = found.items()
        listed = iter(zip(items.row_I, items.u_I, items.undecided_I, items.counted_I, strict=True))
        for b, number in enumerate(number_B):
            low, high = middle[b, :number] - 2, middle[b, :number] + 1
            assert found.before(None)[b, :number].tolist() == [int((product[b] < t).sum()) for t in low]
            for u, place in enumerate(product[b].numpy()):
                undecided, counted = int((high <= place).sum()), int((low <= place).sum())
                if undecided < counted:
                    assert next(listed) == (b, u, undecided, counted)
        assert next(listed, None) is None and found.open == len(items.row_I)


@given(place=st.floats(-1, 1), power=st.integers(0, 60))
def test_a_bound_that_is_compared_lies_beyond_what_is_proven(place: float, power: int) -> None:
    place_11 = torch.tensor([[place * 2.0**-power]], dtype=torch.float64)
    for precision in (SINGLE, DOUBLE):
        low, high = (float(x[0, 0]) for x in compared_bounds(place_11, 256, precision))
        bound = product_bound(256, precision)
        assert low < (float(place_11) - bound) * precision.steps
        assert high > (float(place_11) + bound) * precision.steps


@pytest.mark.parametrize("few_values", [0, 64])
def test_ties_with_exact_distances_are_counted_by_position(
    few_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances one by one, and all by one search; good images of one distance, nearest and farthest ones."""
    monkeypatch.setattr(counting, "_FEW_VALUES", few_values)
    generator = np.random.default_rng(0)
    for values in (1, 5, 40):
        distance = generator.integers(0, values, 200) / 8
        position = generator.integers(0, 201, 60)
        good = np.sort(generator.integers(-1, values + 1, 60)) / 8
        found = counting._before(distance, np.sort(distance), good, position)
        for value, at, before in zip(good, position, found, strict=True):
            assert before == (distance < value).sum() + (distance[:at] == value).sum()


def near_copies(dims: int, dtype: torch.dtype, spread: float) -> tuple[Tensor, Tensor]:
    """Queries, and rows that differ from them by little or in length only: cancellation at its worst."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(20, dims, dtype=torch.float64, generator=generator)
    g = q.repeat(3, 1) * torch.linspace(0.5, 2, 60)[:, None]
    g[:20] += 1e-7 * torch.randn(20, dims, dtype=torch.float64, generator=generator)
    g[-1] = 0
    q = q * spread ** torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    return q.to(dtype), g.to(dtype)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dims", [1, 3, 256, 2048])
@pytest.mark.parametrize(
    ("dtype", "spread"),
    [
        (torch.float64, 1.0),
        (torch.float64, 1e140),
        (torch.float32, 1e15),
        (torch.bfloat16, 1e15),
        (torch.float16, 1.0),
    ],
)
def test_places_stay_within_the_bound(metric: Metric, dims: int, dtype: torch.dtype, spread: float) -> None:
    q, g = near_copies(dims, dtype, spread)
    ids = np.arange(60)
    query = image_set("query", q, ids[:20], ids[:20], metric=metric)
    gallery = image_set("gallery", g, ids, ids, metric=metric)
    built = tile.Tile.build(gallery, 0, query.norms, metric)
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(20), torch.arange(60), indexing="ij"))
    pairs = (query.features, query.norms, rows, gallery.features, gallery.norms, columns)
    exact = pair_distances(*pairs, metric).view(20, 60)
    for precision in (SINGLE, DOUBLE):
        keys = built.keys(query, precision)
        assert (keys % (1 << COLUMN_BITS) == torch.arange(60)).all()
        found = (keys >> COLUMN_BITS).double() / precision.steps
        error = (found - places(exact, query.norms, metric, built.scale)).abs().max()
        assert error <= place_bound(dims, precision)
    near, bound = built.near(query, rows.numpy(), columns.numpy())
    assert (np.abs(near - exact.flatten().numpy()) <= bound).all()
    assert place_bound(256, SINGLE) < 2.5e-5 and place_bound(256, DOUBLE) < 1e-13


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dims", [1, 5, 256])
def test_distances_of_a_block_have_the_bits_of_its_pairs(metric: Metric, dims: int) -> None:
    q, g = near_copies(dims, torch.float32, 10.0)
    norms = (row_norms(q), row_norms(g))
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(20), torch.arange(60), indexing="ij"))
    exact = pair_distances(q, norms[0], rows, g, norms[1], columns, metric).view(20, 60)
    assert torch.equal(block_distances(q, norms[0], g, norms[1], metric), exact)


def defined_distance(q: list[float], g: list[float], metric: Metric) -> float:
    """One pair of rows by the definition, with Python's float64 numbers and a recursive tree."""

    def tree(terms: list[float]) -> float:
        if len(terms) == 1:
            return terms[0]
        half = (len(terms) + 1) // 2
        right = terms[half:]
        return tree([a + right[i] if i < len(right) else a for i, a in enumerate(terms[:half])])

    if metric == "euclidean":
        return tree([(a - b) * (a - b) for a, b in zip(q, g, strict=True)])
    norms = [max(math.sqrt(tree([x * x for x in row])), 1e-12) for row in (q, g)]
    return 1.0 - tree([a * b for a, b in zip(q, g, strict=True)]) / (norms[0] * norms[1])


KINDS = ("apart", "collapsed", "one ulp apart", "all the same", "few rows", "lengths", "tiny", "integers")


def hard_features(kind: str, rng: np.random.Generator, count: int, dims: int) -> Tensor:
    rows: Array = rng.normal(size=(count, dims))
    if kind == "collapsed":
        rows = np.ones(dims) + 1e-6 * rows
    elif kind == "one ulp apart":
        rows = (np.ones(dims) + 2.0**-23 * rng.integers(0, 2, (count, dims))).astype(np.float32)
    elif kind == "all the same":
        rows[:] = np.linspace(1, 2, dims)
    elif kind == "few rows":
        rows = np.random.default_rng(0).normal(size=(3, dims))[rng.integers(0, 3, count)]
    elif kind == "lengths":
        rows *= 10.0 ** rng.uniform(-30, 30, (count, 1))
    elif kind == "tiny":
        rows *= 10.0 ** rng.uniform(-14, -11, (count, 1))
    elif kind == "integers":
        rows = rng.integers(-1, 2, (count, dims))
    return torch.as_tensor(rows, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@example(kind="collapsed", dtype=torch.float64, metric="cosine", dims=33, identities=2, way="sorted", seed=1)
@example(
    kind="one ulp apart", dtype=torch.float32, metric="cosine", dims=33, identities=2, way="whole", seed=1
)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    dims=st.sampled_from([1, 2, 7, 33]),
    identities=st.sampled_from([2, 12]),
    way=st.sampled_from(["sorted", "compared", "whole"]),
    seed=st.integers(0, 10_000),
)
def test_near_ties_are_in_the_order_of_float64(
    kind: str, dtype: torch.dtype, metric: Metric, dims: int, identities: int, way: str, seed: int
) -> None:
    """Places of each tile are sorted or compared, or those of whole lists sorted."""
    rng = np.random.default_rng(seed)
    q, g = hard_features(kind, rng, 6, dims), hard_features(kind, rng, 70, dims)
    q[:2] = g[:2]
    limit = 6e4 if dtype == torch.float16 else 1e38
    q, g = (x.clamp(-limit, limit).to(dtype) for x in (q, g))
    qp, gp = np.arange(6) % (identities - 1) + 1, rng.integers(-1, identities, 70)
    gp[-6:] = qp
    qc, gc = np.zeros(6, int), rng.integers(0, 3, 70)
    gc[-6:] = 1
    rows = [x.double().tolist() for x in (q, g)]
    distance = np.array([[defined_distance(a, b, metric) for b in rows[1]] for a in rows[0]])
    cmc, hits, trapezoid, inp, valid = slow(distance, qp, qc, gp, gc)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(counting, "_FEW_GOOD", 0 if way == "sorted" else 1000)
        patched.setattr(evaluate, "sorts_whole_lists", lambda *_: way == "whole")
        patched.setattr(whole_lists, "_OPEN_SHARE", 1)  # never given up
        found = evaluate_retrieval(q, qp, qc, g, gp, gc, metric=metric)
    assert np.array_equal(found.cmc, cmc) and found.mAP == hits and found.valid_queries == valid
    assert found.mAP_trapezoid == pytest.approx(trapezoid, abs=1e-14)
    assert found.mINP == pytest.approx(inp, abs=1e-14)


def few_persons(kind: str, seed: int, queries: int, images: int, persons: int) -> tuple[Any, ...]:
    """The arguments of an evaluation with many good images a query, junk and distractors."""
    rng = np.random.default_rng(seed)
    q, g = (hard_features(kind, rng, count, 24).float() for count in (queries, images))
    of_query = rng.integers(1, persons + 1, queries), rng.integers(0, 4, queries)
    return q, *of_query, g, rng.integers(-1, persons + 1, images), rng.integers(0, 4, images)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_precision_nor_merging_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, kind: str
) -> None:
    """Many good images a query, distances of identities as blocks or as pairs, items in small chunks."""
    monkeypatch.setattr(evaluate, "sorts_whole_lists", lambda *_: False)
    data = few_persons(kind, 0, 40, 900, 2)
    whole = evaluate_retrieval(*data, metric=metric)
    monkeypatch.setattr(evaluate, "GALLERY_TILE", 400)
    for ways in ([SINGLE], [DOUBLE], [SINGLE, DOUBLE]):
        for copies_merged, few_good in ((2, 0), (10**9, 0), (10**9, 10**9)):
            monkeypatch.setattr(evaluate, "precisions", lambda *_, ways=ways: tuple(ways))
            monkeypatch.setattr(tile, "_COPIES", copies_merged)
            monkeypatch.setattr(good_images, "_MANY_GOOD", copies_merged)
            monkeypatch.setattr(counting, "_FEW_GOOD", few_good)
            monkeypatch.setattr(counting_sorted, "CHUNK_ITEMS", 1000)
            monkeypatch.setattr(counting_compared, "CHUNK_ITEMS", 1000)
            monkeypatch.setattr(good_images, "_CHUNK_COLUMNS", 50)
            assert same(evaluate_retrieval(*data, metric=metric), whole)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_sorting_exact_distances_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, kind: str
) -> None:
    """Whole blocks of them, of merged copies too; rows one ulp apart go there by themselves."""
    monkeypatch.setattr(evaluate, "sorts_whole_lists", lambda *_: False)
    data = few_persons(kind, 1, 30, 500, 4)
    monkeypatch.setattr(counting, "_SORTED_SHARE", 2)
    whole = evaluate_retrieval(*data, metric=metric)
    blocks: list[int] = []
    exact_block = tile.Tile.exact_block

    def noted(self: tile.Tile, query: ImageSet) -> Array:
        blocks.append(len(query))
        return exact_block(self, query)

    monkeypatch.setattr(tile.Tile, "exact_block", noted)
    monkeypatch.setattr(evaluate, "GALLERY_TILE", 300)
    monkeypatch.setattr(counting, "_SORTED_SHARE", 1 / 8)
    assert same(evaluate_retrieval(*data, metric=metric), whole)
    assert len(blocks) == 2 or kind != "one ulp apart"
    monkeypatch.setattr(evaluate, "precisions", lambda *_: (DOUBLE,))
    monkeypatch.setattr(counting, "_SORTED_SHARE", -1)
    blocks.clear()
    assert same(evaluate_retrieval(*data, metric=metric), whole) and len(blocks) == 2


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_sorting_whole_lists_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, kind: str
) -> None:
    """Given up or not, in small tiles, with operands made anew, and where later blocks are counted."""
    data = few_persons(kind, 2, 30, 600, 3)
    monkeypatch.setattr(evaluate, "QUERY_BLOCK", 8)
    found = [evaluate_retrieval(*data, metric=metric)]
    monkeypatch.setattr(whole_lists, "_TILE", 70)
    monkeypatch.setattr(whole_lists, "_HELD_ELEMENTS", 0)
    monkeypatch.setattr(whole_lists, "_OPEN_SHARE", 1)
    found.append(evaluate_retrieval(*data, metric=metric))
    whole_ranks, blocks = whole_lists.WholeLists.ranks, iter(range(100))
    monkeypatch.setattr(
        whole_lists.WholeLists, "ranks", lambda *args: whole_ranks(*args) if next(blocks) < 2 else None
    )
    found.append(evaluate_retrieval(*data, metric=metric))
    assert next(blocks) == 3
    monkeypatch.setattr(evaluate, "sorts_whole_lists", lambda *_: False)
    counted = evaluate_retrieval(*data, metric=metric)
    assert all(same(one, counted) for one in found)


def test_whole_lists_are_sorted_where_good_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    q, qp, qc, g, gp, gc = few_persons("apart", 0, 30, 600, 3)
    sides = (image_set("query", q, qp, qc, metric="cosine"), image_set("gallery", g, gp, gc, metric="cosine"))
    pairs = [block_pairs(qp, qc, GalleryIndex.build(gp, gc))]
    good = len(pairs[0].good_row) / 30
    assert good >= whole_lists.MANY_GOOD and whole_lists.sorts_whole_lists(*sides, pairs)
    for name, value in (("MANY_GOOD", good + 1), ("MANY_SHARE", (good + 1) / 600), ("_LARGEST_GALLERY", 599)):
        with monkeypatch.context() as patched:
            patched.setattr(whole_lists, name, value)
            assert not whole_lists.sorts_whole_lists(*sides, pairs)


def test_a_product_in_bfloat16_is_not_taken_for_one_in_float32() -> None:
    cpu = torch.device("cpu")
    data = copies()
    whole = evaluate_retrieval(*data)
    assert precisions(cpu, 256) == (SINGLE, DOUBLE) and precisions(cpu, 1 << 17) == (DOUBLE,)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(evaluate_retrieval(*data), whole)
    torch.set_float32_matmul_precision("medium")
    try:
        assert precisions(cpu, 256) == (DOUBLE,)
        assert same(evaluate_retrieval(*data), whole)
    finally:
        torch.set_float32_matmul_precision("highest")


def collapsed() -> Data:
    """A gallery of three pictures and four identities: rows are merged, good images are many."""
    q, _, qc, g, _, gc = copies(distinct=3, gallery=600)
    rng = np.random.default_rng(5)
    return q, rng.integers(1, 3, len(q)), qc, g, rng.integers(-1, 3, len(g)), gc


def _on_two_ranks(rank: int, world: int, results: Path) -> None:
    q, qp, qc, g, gp, gc = copies()
    part = slice(0, 77) if rank == 0 else slice(77, None)
    lines = []
    for data in (copies(), collapsed()):
        q, qp, qc, *rest = data
        mine = tuple(array[part] for array in rest)
        for metric in ("cosine", "euclidean"):
            found = evaluate_retrieval(q, qp, qc, *mine, metric=metric, group=dist.group.WORLD)
            lines.append(str(same(found, evaluate_retrieval(*data, metric=metric))))
    q, qp, qc, *rest = data = few_persons("apart", 0, 30, 600, 3)  # whole lists, of one process
    mine = tuple(array[: 0 if rank else None] for array in rest)
    found = evaluate_retrieval(q, qp, qc, *mine, group=dist.group.WORLD)
    lines.append(str(same(found, evaluate_retrieval(*data))))
    q, qp, qc, g, gp, gc = copies()
    broken, other = g[part].copy(), q.copy()
    broken[5, 3] = np.nan if rank == 1 else broken[5, 3]
    other[0] += rank
    for queries, gallery in ((q, broken), (other, g[part])):
        try:
            evaluate_retrieval(queries, qp, qc, gallery, gp[part], gc[part], group=dist.group.WORLD)
        except ValueError as error:
            lines.append(str(error))
    (results / f"{rank}.txt").write_text("\n".join(lines))


def test_copies_across_ranks_and_an_error_on_one_of_them(tmp_path: Path) -> None:
    run_ranks(_on_two_ranks, 2, tmp_path, tmp_path)
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(2))
    assert first[:5] == second[:5] == ["True"] * 5
    assert first[5:] == second[5:]
    assert first[5].startswith("rank 1 of the group: gallery features") and "first row 5" in first[5]
    assert first[6].startswith("the ranks' options differ: rank 1 of the group has query='")


def _raised(arguments: Iterable[Any], **options: Any) -> str:
    """The line that every rank raises, which is the same on all of them."""
    with pytest.raises(ValueError) as raised:  # compared by the caller
        evaluate_retrieval(*arguments, group=dist.group.WORLD, **options)
    lines = [""] * dist.get_world_size()
    dist.all_gather_object(lines, str(raised.value))
    assert lines == [lines[0]] * len(lines) and "\n" not in lines[0]
    return lines[0]


def _refusals(rank: int, world: int) -> None:
    q, qp, qc, g, gp, gc = copies()
    mine = slice(rank * 77, None if rank else 77)
    good = {"q": q, "qp": qp, "qc": qc, "g": g[mine], "gp": gp[mine], "gc": gc[mine]}
    me = "rank 1 of the group"
    for name, value, words in (
        ("q", [*q.tolist()[:3], [0.0]], f"{me}: query features must be an array of floating point numbers"),
        ("q", [["a"]], f"{me}: query features must be an array of floating point numbers"),
        ("q", torch.from_numpy(q).long(), f"{me}: query features must be floating point"),
        ("q", q[:, :3], f"{me}: query features have 3 columns, gallery features {g.shape[1]}"),
        ("q", q[:0], f"{me}: query_pids must be one integer per feature row (0)"),
        (
            "q",
            q[::-1],
            f"the ranks' options differ: {me} has query='{len(q)} x {q.shape[1]} numbers of checksum",
        ),
        ("qp", qp + 1, f"the ranks' options differ: {me} has query_pids='{len(q)} numbers of checksum"),
        ("qc", qc + 1, f"the ranks' options differ: {me} has query_camids='{len(q)} numbers of checksum"),
        ("qc", None, f"{me}: query_camids: none given; for data without cameras"),
        ("g", good["g"] * np.nan, f"{me}: gallery features"),
        ("gp", good["gp"].astype(float), f"{me}: gallery_pids must be integers, not float64"),
        ("gc", good["gc"][:, None], f"{me}: gallery_camids must be one integer per feature row"),
    ):
        assert _raised({**good, name: value}.values() if rank else good.values()).startswith(words), words
    for options, usual, words in (
        ({"max_rank": 10}, {}, f"the ranks' options differ: {me} has max_rank=10, others max_rank=50"),
        ({"max_rank": 0}, {}, f"{me}: max_rank: expected an integer of at least 1, got 0"),
        ({"max_rank": "10"}, {}, f"{me}: max_rank: expected an integer of at least 1, got '10'"),
        ({"ap": "hit"}, {}, f"{me}: ap 'hit' is unknown: choose one of hits, trapezoid"),
        ({"ap": "trapezoid"}, {}, f"the ranks' options differ: {me} has ap='trapezoid', others ap='hits'"),
        ({"metric": "l1"}, {}, f"{me}: metric 'l1' is unknown"),
        ({}, {"metric": "euclidean"}, f"{me} has metric='cosine', others metric='euclidean'"),
    ):
        assert words in _raised(good.values(), **(options if rank else usual)), words
    none = {**good, "g": g[:0], "gp": gp[:0], "gc": gc[:0]}
    assert _raised(none.values()) == "there is no gallery image"


def test_what_is_wrong_on_one_rank_is_one_line_on_all(tmp_path: Path) -> None:
    run_ranks(_refusals, 2, tmp_path)


def test_a_group_of_one_rank_is_no_group_and_a_group_is_checked(tmp_path: Path) -> None:
    run_ranks(_alone, 1, tmp_path)
    with pytest.raises(ValueError, match="process group or None, got str"):
        evaluate_retrieval(*copies(), group="world")  # type: ignore[arg-type]


def _alone(rank: int, world: int) -> None:
    data = copies()
    assert same(evaluate_retrieval(*data, group=dist.group.WORLD), evaluate_retrieval(*data))
    with pytest.raises(ValueError, match="max_rank: expected"):
        evaluate_retrieval(*data, group=dist.group.WORLD, max_rank=0)
