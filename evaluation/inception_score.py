"""Inception Score of one source of images: JSON with the number and how it was made."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from evaluation.options import EvaluationOptions, FakeOptions
from evaluation.scoring.pipeline import single
from toolkit.command_line import run


@dataclass(frozen=True, kw_only=True)
class InceptionScoreOptions(FakeOptions):
    """Inception Score (higher is better; knows nothing of the real images, so report it beside FID)."""

    splits: int = 10
    """Parts that the mean and the deviation are taken over."""
    weights: Path | None = None
    """torch-fidelity's Inception weights file (default: its download)."""
    resize: Literal["legacy", "clean", "pytorch"] = "legacy"
    """How images come to Inception's 299 px: as torch-fidelity, as clean-fid or as pytorch-fid does it."""


def main(options: InceptionScoreOptions) -> None:
    if report := score(options):
        print(json.dumps(report, indent=1, ensure_ascii=False))


def score(options: InceptionScoreOptions) -> dict | None:
    """The report: "inception_score", "inception_score_std", "protocol", "notes"; None on all but the main process.

    Raises UserError.
    """
    chosen = asdict(options) | {"fake": [options.fake], "metrics": "inception_score"}
    return single(EvaluationOptions(**chosen), "inception_score", "inception")


if __name__ == "__main__":
    run(main, InceptionScoreOptions)
