"""table.md: a row for each variant, a column for each score, every number beside what it is judged against."""

from benchmarks.ablate.reference import REFERENCE
from benchmarks.ablate.results import Results
from benchmarks.ablate.verdicts import ALPHA, Verdict, judge, scores_of, values
from evaluation.compare.significance import Summary, least_shown, summary
from evaluation.run_scores.score_names import parse


def draw_table(results: Results, alpha: float = ALPHA) -> str:
    """GitHub's Markdown, with what was measured above and how to read it below."""
    scores = scores_of(results)
    verdicts = {score: judge(results, score, alpha) for score in scores}
    head = ["variant", "differs in", "runs", *map(_title, scores), "s per 1,000 images", "parameters G + D",
            "multiply-adds G + D", "findings"]  # fmt: skip
    rows = [_row(results, name, scores, verdicts) for name in results.variants()]
    rows += [_floor(results, scores, len(head))] if results.floor else []
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n\n".join([_about(results), table, *_failures(results), "\n".join(_notes(results, alpha))]) + "\n"


def ranked(results: Results) -> list[str]:
    """The variants other than the control that have the criterion, the best mean first."""
    score, control = results.grid["criterion"], results.grid["control"]
    held = {name: summary(found).mean for name in results.variants() if (found := values(results, name, score))}
    sign = 1 if parse(score).lower_is_better else -1
    return sorted((name for name in held if name != control), key=lambda name: sign * held[name])


def differing(results: Results, variant: str) -> dict[str, tuple[object, object]]:
    """Option -> its value in the control and in the variant."""

    def options(name: str) -> dict:
        return next((run["options"] for run in results.runs if run["variant"] == name), {})

    mine, theirs = options(variant), options(results.grid["control"])
    names = dict.fromkeys([*theirs, *mine])
    pairs = {name: tuple(side.get(name, REFERENCE.get(name)) for side in (theirs, mine)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _row(results: Results, name: str, scores: list[str], verdicts: dict[str, dict[str, Verdict]]) -> list[str]:
    control = name == results.grid["control"]
    changes = "; ".join(f"{option} {now}" for option, (_, now) in differing(results, name).items())
    finished, failed = len(results.of(name)), len(results.of(name, "failed"))
    cells = [
        _mean(values(results, name, score)) + _against(verdicts[score].get(name), score == results.grid["criterion"])
        for score in scores
    ]
    runs = f"{finished}" + (f" + {failed} failed" if failed else "")
    title = f"**{name}** (control)" if control else name
    sizes = [_size(results, name, what) for what in ("parameters", "multiply_adds")]
    return [title, changes, runs, *cells, _pace(results, name), *sizes, _findings(results, name)]


def _title(score: str) -> str:
    return f"{score} {'↓' if parse(score).lower_is_better else '↑'}"


def _mean(found: list[float]) -> str:
    return _summary(summary(found)) if found else "–"


def _summary(side: Summary) -> str:
    return f"{side.mean:.4g}" + (f" ± {side.deviation:.2g}" if side.deviation is not None else "")


def _against(verdict: Verdict | None, in_full: bool) -> str:
    """Of the criterion always a word, of other scores only where a difference is shown: a row is long enough."""
    if verdict is None:
        return ""
    shown = verdict.word in ("better", "worse")
    word = f", **{verdict.word}**" if shown else f", {verdict.word}" if in_full else ""
    return f" ({verdict.difference:+.3g}{word})"


def _floor(results: Results, scores: list[str], width: int) -> list[str]:
    found = results.floor["scores"]
    cells = [f"{found[score]:.4g}" if score in found else "–" for score in scores]
    row = ["*floor: other real images*", "", "", *cells]
    return row + [""] * (width - len(row))


def _pace(results: Results, name: str) -> str:
    mine, theirs = ([run for run in results.of(one) if run.get("seconds_per_kimg")] for one in
                    (name, results.grid["control"]))  # fmt: skip
    if not mine:
        return "–"
    mean = summary([run["seconds_per_kimg"] for run in mine]).mean
    if len({(run["device"], run["clock"]) for run in mine + theirs}) > 1 or not theirs:
        return f"{mean:.3g} (on another device)" if theirs else f"{mean:.3g}"
    return f"{mean:.3g} (x {mean / summary([run['seconds_per_kimg'] for run in theirs]).mean:.2f})"


def _size(results: Results, name: str, what: str) -> str:
    run = next((run for run in results.runs if run["variant"] == name and what in run), None)
    return " + ".join(_short(run[what][network]) for network in "GD") if run else "–"


def _short(number: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:g}"


def _findings(results: Results, name: str) -> str:
    """How many of its runs the monitor had something to say of."""
    runs = [run for run in results.runs if run["variant"] == name]
    names = sorted({finding for run in runs for finding in run.get("findings", {})})
    return ", ".join(f"{one} {sum(one in run.get('findings', {}) for run in runs)}/{len(runs)}" for one in names)


def _about(results: Results) -> str:
    grid = results.grid
    devices = sorted({f"{run['device']}, torch {run['versions']['torch']}" for run in results.runs if "device" in run})
    return (
        f"{grid['kimg']:g} thousand images of {grid['resolution']} px shown to D, out of {grid['samples']:,}; "
        f"{'; '.join(devices)}"
    )


def _failures(results: Results) -> list[str]:
    lines = [
        f"- failed: {run['variant']}, seed {run['seed']}: {run['reason']}"
        for name in results.variants()
        for run in results.of(name, "failed")
    ]
    return ["\n".join(lines)] if lines else []


def _notes(results: Results, alpha: float) -> list[str]:
    notes = [
        "value ± sample standard deviation over the seeds, at the end of training (difference to the control, verdict)",
        "better and worse: Welch's t over the seeds, p corrected for the number of variants (Holm), for each score by "
        f"itself, below {alpha:g}; no word: not shown, which does not mean that there is none",
        "seconds: training alone, without evaluations, samples and plots (x times the control's)",
        "findings: of how many runs the monitor told a warning",
    ]
    clocks = {run["clock"] for run in results.runs if "clock" in run}
    if "process CPU time" in clocks:
        notes[2] += ", of the process's CPU time"
    if any(run.get("parallel", 1) > 1 and run.get("clock") == "wall" for run in results.runs):
        notes.append("several runs shared the device at once: their seconds compare roughly")
    counts = [len(results.of(name)) for name in results.variants()]  # the control's first
    if any(count < 3 for count in counts):
        notes.append("fewer than 3 seeds: only a difference many times the noise can be shown")
    if (seeds := max(counts[1:], default=0)) > 1:
        tests = len(counts) - 1
        fewest, more = (f"{least_shown(count, tests, alpha):.1f}" for count in (seeds, seeds + 2))
        notes.append(
            f"what {seeds} seeds can show of {tests} variants at all: differences of some {fewest} deviations (with "
            f"{seeds + 2} seeds {more}); fewer variants in a grid need less"
        )
    return [f"- {note}" for note in notes]
