"""CLIP score of captioned images under every convention in use: JSON with the numbers and how they were made."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.options import EvaluationOptions, FakeOptions
from evaluation.scoring.pipeline import single
from toolkit.command_line import run


@dataclass(frozen=True, kw_only=True)
class ClipScoreOptions(FakeOptions):
    """CLIP score (higher is better): do the images show what their captions say?"""

    model: str = "ViT-B-32"
    """open_clip architecture. Not the one that conditions the generator: that would praise itself."""
    pretrained: str = "laion2b_s34b_b79k"
    """open_clip tag of the weights."""
    clip_weights: Path | None = None
    """Local copy of these weights (default: open_clip's download)."""
    prefix: str = ""
    """Put in front of every caption."""


def main(options: ClipScoreOptions) -> None:
    if report := score(options):
        print(json.dumps(report, indent=1, ensure_ascii=False))


def score(options: ClipScoreOptions) -> dict | None:
    """The report: the keys of FORMULAS, "protocol", "notes"; None on all but the main process. Raises UserError."""
    chosen = asdict(options) | {"fake": [options.fake], "metrics": "clip_score"}
    chosen |= {"clip_model": chosen.pop("model"), "clip_pretrained": chosen.pop("pretrained")}
    return single(EvaluationOptions(**chosen), "clip_score", "clip")


if __name__ == "__main__":
    run(main, ClipScoreOptions)
