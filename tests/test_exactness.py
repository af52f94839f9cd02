"""A part of `make exactness`: ranks, ZeRO, micro batches and memory give the weights of one process."""

from pathlib import Path

from exactness import LIMIT, Case, largest_distances, save_expected

STEPS = 5  # the memory has a part from the third on


def test_two_ranks_train_as_one_process(tmp_path: Path) -> None:
    cases = [Case(0, False, True), Case(1, True, True), Case(2, False, False), Case(3, True, True)]
    expected = save_expected(STEPS, tmp_path)
    assert float((expected["False"] - expected["True"])[-1].abs().max()) > 100 * LIMIT
    assert float((expected["True"][-1] - expected["True"][-2]).abs().max()) > 100 * LIMIT
    for case, distance in zip(cases, largest_distances(2, cases, STEPS, tmp_path), strict=True):
        assert distance <= LIMIT, case
