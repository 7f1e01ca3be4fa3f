"""Command: which average of G is the best, asked after training; the main one and every profile are scored.

That the length of the average is better chosen afterwards, by a metric, is what Karras et al. 2024 (EDM2, arXiv
2312.02696, section 3) have shown. They reconstruct averages of any length from a few stored ones; here only those are
at hand that training stored (`ema_profiles`), each exact.
"""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from evaluation.options import DrawingOptions, EvaluationOptions, NetworkOptions, ReferenceOptions
from evaluation.run_scores.report_files import as_json, write_report
from evaluation.run_scores.score_names import interval, parse
from evaluation.scoring.pipeline import evaluate
from evaluation.scoring.scores import METRICS, metric_giving, named
from toolkit.command_line import run
from toolkit.errors import UserError, check
from toolkit.inference.sampling import find_checkpoint
from toolkit.run_folder.checkpoint import GENERATOR, MAIN_AVERAGE, MANIFEST, copy_generator, profiles_in

CHOSEN = "average.safetensors"


@dataclass(frozen=True, kw_only=True)
class ChooseOptions(NetworkOptions, ReferenceOptions, DrawingOptions):
    """Score every average of G that a checkpoint holds (training's ema_profiles), and name the best."""

    checkpoint: Path
    """Checkpoint folder (ckpt_*), run folder (its newest valid checkpoint) or RUN/best."""
    metric: str = "fid"
    """The score that decides: any of those that python -m evaluation gives, such as fid, kid, recall, clip_fd."""
    write: bool = False
    """Copy the best average as average.safetensors into the run folder, for toolkit.generate --checkpoint."""
    out: Path | None = None
    """File for the report (.json); default: standard output alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        metric_giving(self.metric)
        check(not parse(self.metric).is_auxiliary, "metric", self.metric, "a score of the images, such as fid")
        check(self.out is None or self.out.suffix == ".json", "out", str(self.out), "a file ending in .json")


class Average(NamedTuple):
    """One of the averages, scored."""

    name: str
    file: Path
    report: dict


def main(options: ChooseOptions) -> None:
    if (report := choose(options)) is None:
        return
    print(table(report), file=sys.stderr)
    if options.out is not None:
        write_report(report, options.out)
    print(as_json(report), end="")


def choose(options: ChooseOptions) -> dict | None:
    """The report: "metric", "best", "averages" (each with "scores", "protocol", "against_best"), "notes", "written".

    None on all but the main process. All averages draw with the same noise for the same captions, and the reference is
    read once. Raises UserError.
    """
    folder = find_checkpoint(options.checkpoint)
    files = {MAIN_AVERAGE: folder / GENERATOR, **(profiles_in(folder) if (folder / MANIFEST).is_file() else {})}
    if len(files) == 1:
        raise UserError(f"{folder} holds the main average alone; train with --ema_profiles 5,20,80 to have a choice")
    metric, wanted = metric_giving(options.metric), evaluation_options(options, list(files.values()))
    reports = list(evaluate(wanted))
    if not reports:
        return None
    score = named(options.metric, metric, wanted)
    scored = [Average(*pair, report) for pair, report in zip(files.items(), reports, strict=True)]
    best = best_by(score, scored)
    written = None
    if options.write:
        written = folder.resolve().parent / CHOSEN
        copy_generator(best.file, written)
    return {
        "metric": score,
        "best": best.name,
        "averages": [about(one, best, score) for one in scored],
        "notes": [
            f"picked by its {score}, the best value is a lucky one: score it anew with another --seed before citing it"
        ],
        "written": str(written) if written else None,
    }


def evaluation_options(options: ChooseOptions, files: list[Path]) -> EvaluationOptions:
    """The same for python -m evaluation, with KID for its interval where it costs no other network."""
    metric = metric_giving(options.metric)
    metrics = [metric, "kid"] if METRICS[metric].tap == "inception" and METRICS[metric].real else [metric]
    own = {field.name for field in fields(ChooseOptions)} - {field.name for field in fields(EvaluationOptions)}
    shared = {name: value for name, value in asdict(options).items() if name not in own | {"out"}}
    return EvaluationOptions(**shared, fake=list(map(str, files)), metrics=",".join(dict.fromkeys(metrics)))


def best_by(score: str, scored: list[Average]) -> Average:
    """Of equal ones the first. Raises UserError where none has the score."""
    sign = 1 if parse(score).lower_is_better else -1
    having = [one for one in scored if one.report["scores"].get(score) is not None]
    if not having:
        raise UserError(f"no average has a {score}: {'; '.join(scored[0].report['notes'])}")
    return min(having, key=lambda one: sign * one.report["scores"][score])


def about(one: Average, best: Average, score: str) -> dict:
    kept = {name: one.report[name] for name in ("scores", "protocol", "notes")}
    return {"average": one.name, "file": str(one.file), **kept, "against_best": against(one, best, score)}


def against(one: Average, best: Average, score: str) -> str:
    """What the 95 % intervals of the two reports say, those of KID where the score has none.

    Both averages draw with the same noise: their scores err alike, and apart intervals are more than is needed.
    """
    if one is best:
        return "best"
    for judge in (score, parse(score).sibling("kid")):
        mine, bests = (interval(judge, of.report["scores"]) for of in (one, best))
        if mine is not None and bests is not None:
            if mine[1] < bests[0]:
                return f"better beyond the noise by {judge}"
            return f"{'worse beyond' if mine[0] > bests[1] else 'within'} the noise by {judge}"
    return "no interval tells the noise"


def table(report: dict) -> str:
    """A row per average, to be read."""
    score = report["metric"]
    rows = [["average", score, *(["95 % interval of KID"] if _kid(report["averages"][0]) else []), ""]]
    for one in report["averages"]:
        value, kid = one["scores"][score], _kid(one)
        shown = [f"[{kid[0]:.4g}, {kid[1]:.4g}]"] if kid else []
        rows.append([one["average"], "nothing" if value is None else f"{value:.4g}", *shown, one["against_best"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def _kid(one: dict) -> tuple[float, float] | None:
    name = next((name for name in one["scores"] if parse(name).stem == "kid"), None)
    return name and interval(name, one["scores"])


if __name__ == "__main__":
    run(main, ChooseOptions)
