"""Whether two means differ by more than the seeds do: Welch's t, and Holm's correction for asking many times.

Welch, The generalization of Student's problem when several different population variances are involved (1947);
Holm, A simple sequentially rejective multiple test procedure (1979), valid however the scores hang together.
"""

import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Summary:
    """One score over the seeds of one variant."""

    mean: float
    deviation: float | None  # sample standard deviation (n - 1); None of a single run
    count: int


class Welch(NamedTuple):
    """The difference of two means, first minus second."""

    difference: float
    error: float  # its standard error, the noise
    t: float
    freedom: float
    p: float  # two-sided


def summary(values: list[float]) -> Summary:
    """Of at least one finite value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), deviation, len(values))


def welch(first: Summary, second: Summary) -> Welch | None:
    """None where a side has one run only, or neither differs between its runs: then nothing tells the noise."""
    if first.deviation is None or second.deviation is None or not (first.deviation or second.deviation):
        return None
    from scipy.stats import ttest_ind_from_stats  # a second of import, only where there is something to test

    result = ttest_ind_from_stats(
        first.mean, first.deviation, first.count, second.mean, second.deviation, second.count, equal_var=False
    )
    parts = [first.deviation**2 / first.count, second.deviation**2 / second.count]
    spread = [part**2 / (one.count - 1) for part, one in zip(parts, (first, second), strict=True)]
    freedom = sum(parts) ** 2 / sum(spread)
    return Welch(
        first.mean - second.mean, math.sqrt(sum(parts)), float(result.statistic), freedom, float(result.pvalue)
    )


def least_shown(seeds: int, tests: int, alpha: float) -> float:
    """How far apart two means over `seeds` (at least 2) runs each must lie, in standard deviations of a run, for the
    first of `tests` to be below `alpha` after `holm`: the same noise on both sides."""
    from scipy.stats import t

    return float(t.ppf(1 - alpha / (2 * tests), 2 * (seeds - 1))) * math.sqrt(2 / seeds)


def holm(values: list[float]) -> list[float]:
    """p values -> adjusted ones, in their order: below `alpha` for any wrongly with probability at most `alpha`."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted
