"""Which curves stand together in training_plots.png."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from toolkit.run_folder.best import BEST
from toolkit.run_folder.evaluations import UNCERTAINTY, Evaluated

IMAGES = "thousand images seen"


class Panel(NamedTuple):
    """A group of curves on one pair of axes; drawn if any of them has data."""

    title: str
    names: tuple[str, ...]
    base: int = 0
    """Of a logarithmic axis; 0: linear."""
    if_varies: bool = False
    """Drawn only if a curve takes more than one value: a switch that stays where it was tells nothing."""
    points: bool = False
    """Measured now and then: each value shows."""
    along: str = "step"
    """What the horizontal axis counts."""


BEFORE_SCORES = (
    Panel("losses", ("loss_d", "loss_g", "loss_mismatch")),
    Panel("D's mean logits", ("logit_real", "logit_fake", "logit_mismatched")),
    Panel("caption found among others: loss", ("loss_match", "loss_g_match", "match_blind")),
    Panel("R1, R2 penalty (before their weights)", ("r1", "r2", "r1_frozen"), base=10),
    Panel("gradient norms", ("grad_norm_d", "grad_norm_g"), base=10),
    Panel("diversity, text sensitivity (share of real images')", ("diversity", "text_sensitivity"), points=True),
    Panel("one layout a prompt (correlation of luminance)", ("same_layout",), points=True),
)
AFTER_SCORES = (
    Panel("share of G's matching loss that counts", ("match_gate",), if_varies=True),
    Panel("probability of augmentation", ("augment_p",), if_varies=True),
    Panel("scale of R1 and R2", ("r1_scale",), base=10, if_varies=True),
    Panel("D steps per G step", ("d_steps",), if_varies=True),
    Panel("fp16 loss scale", ("loss_scale",), base=2),
    Panel("share of steps skipped for overflow", ("skipped",), if_varies=True),
    Panel("learning rates", ("lr_d", "lr_g")),
    Panel("images per second", ("images_per_second",)),
)
EVALUATIONS = {
    "Fréchet distances (lower is better)": r"fid|_fd$",
    "KID (lower is better)": r"kid",
    "Inception Score (higher is better)": r"inception_score",
    "own caption found among others (higher is better)": r"^r_precision",
    "rank of the own caption (lower is better)": r"^median_rank",
    "quality, variety, authenticity (higher is better)": r"precision|recall|density|coverage|authenticity",
    "CLIP score (higher is better)": r"^clip_score(_shuffled)?$",
    "diversity of a prompt's images": r"^diversity",
    "effective number of images (Vendi)": r"^vendi",
    "distance to the nearest training image": r"^nearest_distance",
}
"""Of the scores of evaluations, by title: what the names have in them. The first that fits a name has it."""


def score_panel(run: Path) -> tuple[Panel, list[dict]]:
    """The score in best.json, and {step, score} of each checkpoint; none without the file or if it is damaged."""
    try:
        about = json.loads((run / BEST).read_text(encoding="utf-8"))
        scores = [{"step": int(step), "score": value} for step, value in about["history"]]
        better = "higher" if about.get("higher_is_better") else "lower"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        scores, better = [], "lower"
    return Panel(f"score ({better} is better)", ("score",), points=True), scores


def evaluation_panels(evaluated: list[Evaluated]) -> list[Panel]:
    """Panels for the scores there are, each against the images seen; how sure a score is has no curve."""
    groups: dict[str, list[str]] = {title: [] for title in EVALUATIONS}
    for name in dict.fromkeys(name for one in evaluated for name in one.scores if not UNCERTAINTY.search(name)):
        title = next((title for title, part in EVALUATIONS.items() if re.search(part, name)), None)
        if title is not None:
            groups[title].append(name)
    return [Panel(title, tuple(names), points=True, along=IMAGES) for title, names in groups.items() if names]
