"""A page to look at: `python -m evaluation.report RUN` writes RUN/report.html."""

import sys
from dataclasses import dataclass
from pathlib import Path

from evaluation.report.curves import score_curves, training_curves
from evaluation.report.health import health
from evaluation.report.neighbours import neighbours
from evaluation.report.options_section import options as options_section
from evaluation.report.overview import overview
from evaluation.report.page import document
from evaluation.report.prompts import by_prompt
from evaluation.report.run_record import RunRecord, read_config, read_run
from evaluation.report.score_table import damaged_files, scores
from evaluation.report.timeline import timeline
from shards.report.markup import text
from shards.report.sections import megabytes
from toolkit.command_line import run
from toolkit.config import ResolvedConfig
from toolkit.durable import write_whole
from toolkit.errors import UserError

PAGE_NAME = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about a run: its samples, scores, curves, health and options in one file, no network, no script."""

    run: Path
    """The run folder; may also stand first without its flag."""
    against: Path | None = None
    """Another run folder, whose options are set beside this one's."""
    out: Path | None = None
    """The file to write; default report.html in the run folder."""


def main(options: ReportOptions) -> None:
    record = read_run(options.run)
    other = read_config(options.against) if options.against else None
    page = build_page(record, other, options.against.resolve().name if options.against else "")
    path = options.out or options.run / PAGE_NAME
    try:
        write_whole(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file with --out") from None
    for line in record.damaged:
        print(f"left out: {line}", file=sys.stderr)
    print(f"wrote {path} ({megabytes(len(page))}); open it in any browser")


def build_page(record: RunRecord, other: ResolvedConfig | None = None, other_name: str = "") -> bytes:
    """The page as UTF-8: a function of the run folder, without the date."""
    name = record.folder.resolve().name
    body = [
        f"<h1>{text(name)}</h1>",
        *damaged_files(record),
        *overview(record),
        *timeline(record),
        *scores(record),
        *score_curves(record.evaluations),
        *by_prompt(record),
        *neighbours(record),
        *training_curves(record),
        *health(record),
        *options_section(record, other, other_name),
    ]
    return document(f"{name}: run", body).encode("utf-8", "backslashreplace")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    run(main, ReportOptions, ["--run", *arguments] if arguments and not arguments[0].startswith("-") else arguments)
