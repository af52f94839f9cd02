"""What a study found: its rows with mean and spread, differences to the base row, and its claims."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from maskreid_dist.study.differences import Interval, Verdict, row_difference
from maskreid_dist.study.result import RowResult
from maskreid_dist.study.state import State
from maskreid_dist.study.study_file import Claim, Row

RULE = (
    "A claim holds where the whole 95 % interval of the difference in mAP lies above 0, does not hold where "
    "the whole interval lies below 0, and is undecided otherwise, and with less than two seeds on a side. "
    "Intervals: queries and seeds drawn 2000 times (the same on both sides), the seeds' part stretched by "
    "Student's t; they tell about other queries of these persons and other seeds, not about other persons."
)


@dataclass(frozen=True)
class Figure:
    """Over seeds, in per cent; spread: the standard deviation of a seed, None with one."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self) -> str:
        """ "51.23 ± 0.45"."""
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


@dataclass(frozen=True)
class RowSummary:
    """seeds: those that are done. differences: to the base row by figure, None: cannot be compared (yet).
    minutes: of a training, on the mean; None: not recorded."""

    row: Row
    seeds: Sequence[int]
    mAP: Figure | None
    rank1: Figure | None
    mINP: Figure | None
    differences: dict[str, Interval] | None
    minutes: float | None


@dataclass(frozen=True)
class ClaimSummary:
    """interval: of the difference in mAP; None: rows are not done, or cannot be compared."""

    claim: Claim
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        return self.interval.verdict if self.interval else "undecided"

    def sentence(self) -> str:
        """ "TEXT: holds (mAP +3.1 points, 95 % interval +1.2 to +5.0, 3 seeds)."."""
        why = "not yet run, or not on the same queries"
        if self.interval:
            why = f"mAP {interval_text(self.interval)}, {_seeds(self.interval.seeds)}"
        return f"{self.claim.text}: {self.verdict} ({why})."


@dataclass(frozen=True)
class Summary:
    """done, of: trainings. made_by: each processor, number of threads and version of torch that the results
    come from."""

    name: str
    base_row: str
    rows: Sequence[RowSummary]
    claims: Sequence[ClaimSummary]
    done: int
    of: int
    made_by: Sequence[str]

    def run(self) -> list[RowSummary]:
        """Rows of which a seed is done."""
        return [row for row in self.rows if row.seeds]

    def judged(self) -> list[ClaimSummary]:
        """Claims whose rows are done, with any seed that both have."""
        return [claim for claim in self.claims if claim.interval]

    def to_come(self) -> list[str]:
        """Lines that name the rows and the claims that there is nothing of yet."""
        rows = [row.row.name for row in self.rows if not row.seeds]
        claims = [one.claim.name for one in self.claims if not one.interval]
        found = (("Rows not yet run", rows), ("Claims not yet judged", claims))
        return [f"{title}: {', '.join(names)}." for title, names in found if names]

    def standing(self) -> str:
        """How much of the study this is."""
        whole = sum(1 for row in self.rows if len(row.seeds) * len(self.rows) >= self.of)
        text = (
            f"{self.done} of {self.of} trainings are done, {whole} of {len(self.rows)} rows with every seed"
        )
        return text + (f"; on: {'; '.join(self.made_by)}" if self.made_by else "")


def summarise(state: State) -> Summary:
    """Of what is done."""
    study = state.loaded.study
    results = {row.name: state.results_of(row.name) for row in study.rows}
    rows = [_row(row, results[row.name], results[study.base_row], study.base_row) for row in study.rows]
    claims = []
    for claim in study.claims:
        found = row_difference(results[claim.than], results[claim.better])
        claims.append(ClaimSummary(claim, found["mAP"] if found else None))
    made_by = sorted({_made_by(one) for one in state.done.values()})
    return Summary(
        study.name, study.base_row, rows, claims, len(state.done), len(state.loaded.tasks), made_by
    )


def interval_text(interval: Interval) -> str:
    """ "+3.10 points, 95 % interval +1.20 to +5.00"."""
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"


def _row(row: Row, own: dict[int, RowResult], base: dict[int, RowResult], base_row: str) -> RowSummary:
    done = [own[seed] for seed in sorted(own)]
    figures = {
        key: Figure([one.figures[key] for one in done]) if done else None
        for key in ("mAP_hits", "rank1", "mINP")
    }
    minutes = [one.minutes for one in done if one.minutes is not None]
    return RowSummary(
        row,
        sorted(own),
        figures["mAP_hits"],
        figures["rank1"],
        figures["mINP"],
        None if row.name == base_row else row_difference(base, own),
        statistics.fmean(minutes) if minutes else None,
    )


def _made_by(result: RowResult) -> str:
    torch = result.versions.get("torch", "not recorded")
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    return f"{result.processor}, {threads}, torch {torch}"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"
