"""The comparison as text for a terminal, and as numbers."""

from dataclasses import asdict

from evaluation.compare.runs import ScoredRun, Variant
from evaluation.compare.significance import Summary, summary
from evaluation.compare.verdicts import Comparison, common_scores
from evaluation.run_scores.score_names import parse


def as_text(variants: list[Variant], comparisons: list[Comparison], notes: list[str]) -> str:
    lines = [line for variant in variants for line in _about(variant, variants[0])]
    if len(variants) == 1:
        lines += ["", *_aligned(_alone(variants[0]))]
    for other in variants[1:]:
        rows = [one for one in comparisons if one.second == other.label]
        lines += ["", *_aligned([_head(rows[0]), *map(_row, rows)])] if rows else []
    return "\n".join([*lines, "", *(f"note: {note}" for note in notes)])


def as_numbers(variants: list[Variant], comparisons: list[Comparison], notes: list[str]) -> dict:
    """JSON: the runs of each variant, what distinguishes it from the first, a verdict with its numbers per score."""
    return {
        "variants": [
            {
                "label": one.label,
                "options": changed(one, variants[0]),
                "scores": {name: asdict(summary(one.values(name))) for name in common_scores([one])},
                "runs": [_run(run) for run in one.runs],
            }
            for one in variants
        ],
        "comparisons": [_numbers(one) for one in comparisons],
        "protocol": variants[0].runs[0].evaluation.protocol,
        "notes": notes,
    }


def changed(variant: Variant, first: Variant) -> dict[str, list]:
    """Option -> [its value in the first variant, in this one]."""
    mine, theirs = variant.runs[0].identity, first.runs[0].identity
    return {name: [theirs[name], mine[name]] for name in mine if mine[name] != theirs[name]}


def _about(variant: Variant, first: Variant) -> list[str]:
    runs = ", ".join(
        f"{run.folder} (seed {run.config.seed}, {run.evaluation.path.name}{_at(run.evaluation.step)})"
        for run in variant.runs
    )
    lines = [f"{variant.label}  {runs}"]
    if variant is not first:
        options = "; ".join(f"{name} {before} -> {now}" for name, (before, now) in changed(variant, first).items())
        lines.append(f"   {options}")
    return lines


def _at(step: int | None) -> str:
    return "" if step is None else f", step {step:,}"


def _alone(variant: Variant) -> list[list[str]]:
    rows = [(name, summary(variant.values(name))) for name in common_scores([variant])]
    head = ["score", "better", f"{variant.label} (n = {len(variant.runs)})"]
    return [head, *([name, _way(name), _mean(side)] for name, side in rows)]


def _way(name: str) -> str:
    return "lower" if parse(name).lower_is_better else "higher"


def _head(one: Comparison) -> list[str]:
    return ["score", "better", *(f"{label} (n = {side.count})" for label, side in _sides(one)), "verdict"]


def _sides(one: Comparison) -> list[tuple[str, Summary]]:
    return list(zip((one.first, one.second), one.sides, strict=True))


def _row(one: Comparison) -> list[str]:
    return [one.score, _way(one.score), *(_mean(side) for side in one.sides), one.verdict]


def _mean(side: Summary) -> str:
    return f"{side.mean:.4g}" + (f" ± {side.deviation:.2g}" if side.deviation is not None else "")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _run(run: ScoredRun) -> dict:
    one = run.evaluation
    return {
        "run": str(run.folder),
        "seed": run.config.seed,
        "step": one.step,
        "file": one.path.name,
        "scores": one.scores,
    }


def _numbers(one: Comparison) -> dict:
    sides = {label: asdict(side) for label, side in _sides(one)}
    numbers = {name: value for name, value in asdict(one).items() if name not in ("sides", "test", "first", "second")}
    return numbers | {"of": [one.first, one.second], "sides": sides, "welch": one.test and one.test._asdict()}
