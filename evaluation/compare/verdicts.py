"""From the scores of two variants to a sentence that claims no more than they show."""

from dataclasses import dataclass
from typing import Literal

from evaluation.compare.runs import Variant
from evaluation.compare.significance import Summary, Welch, holm, summary, welch
from evaluation.run_scores.score_names import in_order, interval, parse


@dataclass(frozen=True)
class Comparison:
    """One score of two variants."""

    score: str
    first: str  # their labels
    second: str
    sides: tuple[Summary, Summary]
    test: Welch | None
    p_holm: float | None
    """The test's p corrected for all tests of this comparison."""
    better: str | None
    """The label of the variant that is better beyond the noise."""
    verdict: str


def compare(variants: list[Variant], alpha: float) -> list[Comparison]:
    """The first variant against each other one by every score that both have; Holm's correction over all of it."""
    first = variants[0]
    asked = [
        (other, name, summary(first.values(name)), summary(other.values(name)))
        for other in variants[1:]
        for name in common_scores([first, other])
    ]
    tests = [welch(mine, theirs) for _, _, mine, theirs in asked]
    adjusted = iter(holm([test.p for test in tests if test]))
    return [
        _judge(first, *one, test, next(adjusted) if test else None, alpha)
        for one, test in zip(asked, tests, strict=True)
    ]


def common_scores(variants: list[Variant]) -> list[str]:
    """Names of the scores that at least one run of each variant has, in the order of a table."""
    names = [{name for run in variant.runs for name in run.evaluation.scores} for variant in variants]
    return in_order(set.intersection(*names))


def _judge(
    first: Variant, other: Variant, name: str, mine: Summary, theirs: Summary, test: Welch | None,
    p_holm: float | None, alpha: float,
) -> Comparison:  # fmt: skip
    lower = parse(name).lower_is_better
    ahead, behind = (first, other) if (mine.mean < theirs.mean) == lower else (other, first)
    better = None
    if test is None:
        verdict = _without_test(first, other, name, mine, theirs)
    else:
        told = f"difference {abs(test.difference):.3g}, noise {test.error:.2g} (Welch t, p = {p_holm:.2g})"
        better = ahead.label if p_holm is not None and p_holm < alpha else None
        verdict = f"{ahead.label} better than {behind.label}: {told}" if better else f"within the noise: {told}"
    return Comparison(name, first.label, other.label, (mine, theirs), test, p_holm, better, verdict)


def _without_test(first: Variant, other: Variant, name: str, mine: Summary, theirs: Summary) -> str:
    if mine.count > 1 and theirs.count > 1:
        return "no verdict: no seed differs from another, so nothing tells the noise"
    which = [variant.label for variant, side in ((first, mine), (other, theirs)) if side.count == 1]
    one = "one seed each" if len(which) == 2 else f"one seed of {which[0]}"
    more = f"{one}: no verdict; run {'both' if len(which) == 2 else which[0]} with another --seed"
    return more + (_by_intervals(first, other, name) if len(which) == 2 else "")


def _by_intervals(first: Variant, other: Variant, name: str) -> str:
    """What the intervals within two reports say: of these two checkpoints, never of the variants."""
    ends = [next(one for one in variant.runs if name in one.evaluation.scores) for variant in (first, other)]
    mine, theirs = (interval(name, one.evaluation.scores) for one in ends)
    if mine is None or theirs is None:
        return ""
    apart = mine[1] < theirs[0] or theirs[1] < mine[0]
    said: Literal["do not overlap", "overlap"] = "do not overlap" if apart else "overlap"
    shown = " and ".join(f"{low:.3g} to {high:.3g}" for low, high in (mine, theirs))
    what = "the two checkpoints differ, of other seeds that says nothing" if apart else "not even they need differ"
    return f" (the reports' own 95 % intervals {shown} {said}: {what})"
