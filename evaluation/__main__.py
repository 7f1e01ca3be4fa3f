"""Command: several scores at once, of one source or of several checkpoints in a row."""

import sys
from pathlib import Path

from evaluation.options import EvaluationOptions, listed
from evaluation.run_scores.report_files import as_json, write_report
from evaluation.scoring.pipeline import evaluate
from toolkit.command_line import run
from toolkit.errors import UserError


def main(options: EvaluationOptions) -> None:
    if options.out is not None and (options.out.suffix == ".json") == (len(options.fake) > 1):
        raise UserError(
            f"--out {options.out}: give a file ending in .json for one source, a folder for several (RUN/evaluations)"
        )
    written = []
    for path, report in zip(options.fake, evaluate(options), strict=False):  # only the main process gets reports
        if options.out is not None:
            report = write_report(report, _file(options.out, path))
        report.pop("images", None)
        print(_line(path, report), file=sys.stderr)
        written.append(report)
    if written:
        print(as_json(written[0] if len(options.fake) == 1 else {"reports": written}), end="")


def _file(out: Path, path: str) -> Path:
    """`out`, or in that folder step_N.json for ckpt_N, as training names them; else by the source's name."""
    name = Path(path).name.replace("ckpt_", "step_")
    return out if out.suffix == ".json" else out / f"{name}.json"


def _line(path: str, report: dict) -> str:
    """A checkpoint's scores in a row, to be read under the others'."""
    shown = ("nothing" if value is None else f"{value:.4g}" for value in report["scores"].values())
    scores = ", ".join(f"{name} {value}" for name, value in zip(report["scores"], shown, strict=True))
    return f"{path}: {scores}"


if __name__ == "__main__":
    run(main, EvaluationOptions, listed(sys.argv[1:]))
