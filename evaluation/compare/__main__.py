"""Runs against runs: `python -m evaluation.compare RUN_A RUN_B ...` with seeds as error bars."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from evaluation.compare.runs import Variant, group, objections, read_scored
from evaluation.compare.table import as_numbers, as_text
from evaluation.compare.verdicts import Comparison, compare
from toolkit.command_line import run
from toolkit.durable import write_whole
from toolkit.errors import UserError, check

FEW = 3
"""Fewer seeds a side can only show differences many times the noise."""


@dataclass(frozen=True)
class CompareOptions:
    """Compare trained runs by their evaluations; runs that differ by seed alone are repetitions of one variant."""

    runs: list[str]
    """Run folders, at least two; may also stand first without the flag. The first one's variant is compared with each
    other variant."""
    step: int | None = None
    """Compare the evaluations of this step (default: the newest of each run)."""
    best: str | None = None
    """Compare of each run the evaluation that is best by this score."""
    file: str | None = None
    """Compare the evaluations in the files of this name."""
    alpha: float = 0.05
    """A difference counts if noise alone makes one such in all the table with less than this probability."""
    json: Path | None = None
    """File for the numbers."""
    force: bool = False
    """Compare what was evaluated in different ways all the same; the table says so."""

    def __post_init__(self) -> None:
        check(len(self.runs) >= 2, "runs", self.runs, "at least two run folders")
        check(
            len({Path(name).resolve() for name in self.runs}) == len(self.runs), "runs", self.runs, "different folders"
        )
        check(0 < self.alpha < 0.5, "alpha", self.alpha, "above 0 and below 0.5")
        check(self.step is None or self.step >= 0, "step", self.step, "at least 0")


def main(options: CompareOptions) -> None:
    scored = [read_scored(Path(name), options.step, options.best, options.file) for name in options.runs]
    variants = group(scored)
    against = objections(variants)
    if against and not options.force:
        raise UserError(f"{against[0]}; --force compares them all the same")
    comparisons = compare(variants, options.alpha)
    if len(variants) > 1 and not comparisons:
        raise UserError(f"the runs have no score in common: {_scores(variants)}; evaluate them by the same --metrics")
    notes = [f"FORCED: {text}" for text in against] + _notes(options, variants, comparisons)
    if options.json:
        _write(options.json, as_numbers(variants, comparisons, notes))
    print(as_text(variants, comparisons, notes))


def _notes(options: CompareOptions, variants: list[Variant], comparisons: list[Comparison]) -> list[str]:
    tested = sum(one.test is not None for one in comparisons)
    notes = ["± is the sample standard deviation over seeds"]
    notes[0] += "; noise is the standard error of the difference" * bool(tested)
    if tested > 1:
        notes.append(f"{tested} tests: p is corrected for their number (Holm), better is said below {options.alpha:g}")
    if tested and min(len(variant.runs) for variant in variants) < FEW:
        notes.append(f"fewer than {FEW} seeds a side: only a difference many times the noise can be shown")
    if options.best:
        notes.append(
            f"each run's best {options.best} was picked by itself: a lucky value, and more so of more evaluations"
        )
    if len(variants) == 1:
        notes.append("all runs are one variant (they differ by seed alone): there is nothing to compare them with")
    steps = {run.evaluation.step for variant in variants for run in variant.runs}
    if len(steps) > 1:
        notes.append(f"evaluated at different steps: {', '.join(sorted(map(str, steps)))}")
    return notes


def _scores(variants: list[Variant]) -> str:
    return "; ".join(f"{one.label} has {', '.join(one.runs[0].evaluation.scores) or 'none'}" for one in variants)


def _write(path: Path, numbers: dict) -> None:
    try:
        write_whole(
            path, (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        )
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file with --json") from None


def runs_first(arguments: list[str]) -> list[str]:
    """`A B --step 5` -> `--runs ["A", "B"] --step 5`: the fields of an options class become flags only."""
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return [f"--runs={json.dumps(arguments[:count])}", *arguments[count:]] if count else arguments


if __name__ == "__main__":
    run(main, CompareOptions, runs_first(sys.argv[1:]))
