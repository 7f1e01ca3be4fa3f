"""Each variant against the control, score by score: Welch's t over the seeds, Holm's correction over the variants."""

from typing import NamedTuple

from benchmarks.ablate.results import Results
from evaluation.compare.significance import Summary, holm, summary, welch
from evaluation.run_scores.score_names import in_order, parse

ALPHA = 0.05


class Verdict(NamedTuple):
    """A variant's score beside the control's."""

    score: str
    variant: str
    mine: Summary
    control: Summary
    p_holm: float | None
    """Corrected for the number of variants."""
    word: str
    """better, worse, no difference shown, too few seeds, no noise to judge by, or 'failed runs' where an advantage of
    those that survived says nothing."""

    @property
    def difference(self) -> float:
        return self.mine.mean - self.control.mean


def last_scores(run: dict) -> dict[str, float]:
    """At the end of the run."""
    return run["points"][-1]["scores"] if run["points"] else {}


def values(results: Results, variant: str, score: str) -> list[float]:
    """Over the seeds of finished runs."""
    return [last_scores(run)[score] for run in results.of(variant) if score in last_scores(run)]


def scores_of(results: Results) -> list[str]:
    """Every score that a table has a column for, the criterion first."""
    names = {name for run in results.runs for name in last_scores(run)}
    criterion = results.grid["criterion"]
    return [*([criterion] if criterion in names else []), *(name for name in in_order(names) if name != criterion)]


def judge(results: Results, score: str, alpha: float = ALPHA) -> dict[str, Verdict]:
    """By variant; those without a value, and all if the control has none, are left out."""
    control = results.grid["control"]
    held = {name: found for name in results.variants() if (found := values(results, name, score))}
    if control not in held:
        return {}
    theirs = summary(held.pop(control))
    sides = {name: summary(found) for name, found in held.items()}
    tests = {name: welch(mine, theirs) for name, mine in sides.items()}
    tested = [name for name, test in tests.items() if test]
    adjusted = dict(zip(tested, holm([tests[name].p for name in tested]), strict=True))
    return {
        name: Verdict(score, name, mine, theirs, adjusted.get(name), _word(results, score, name, mine, theirs,
                                                                           adjusted.get(name), alpha))
        for name, mine in sides.items()
    }  # fmt: skip


def _word(
    results: Results, score: str, name: str, mine: Summary, theirs: Summary, p: float | None, alpha: float
) -> str:
    if p is None:
        if min(mine.count, theirs.count) < 2:
            return "too few seeds"
        return "no difference shown" if mine.mean == theirs.mean else "no noise to judge by"
    if p >= alpha:
        return "no difference shown"
    if (mine.mean < theirs.mean) != parse(score).lower_is_better:
        return "worse"
    return "failed runs" if results.of(name, "failed") else "better"
