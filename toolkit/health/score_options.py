"""By which number the best checkpoint is kept, and what is measured of a run's images on the way."""

from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check


@dataclass(frozen=True)
class ScoreOptions:
    """Score of checkpoints and evaluation during training"""

    score: str = "swd"
    """Decides which checkpoint is the best: 'swd' (sliced Wasserstein distance, needs no weights), a score of
    `metrics` (fid, kid, recall, clip_score, ...), or 'none'."""
    score_count: int = 1000
    """Images per score 'swd', real and generated each."""
    score_weights: str | None = None
    """Local Inception weights for evaluations (default: a download)."""
    score_layer: Literal[64, 192, 768, 2048] = 2048
    """Inception layer for evaluations."""
    eval_every: int = 0
    """Steps between evaluations by `metrics` (RUN/evaluations, plots, trackers), the last step included; 0 = none, or,
    where `score` is one of their scores, at every checkpoint. With such a score each evaluation saves a checkpoint."""
    metrics: str = "fid,kid"
    """What an evaluation measures, as `python -m evaluation --metrics`: names joined by commas."""
    eval_count: int | None = None
    """Images per evaluation, real and generated each (default: score_count)."""
    eval_minutes: float = 10
    """An evaluation that takes longer (or half of timeout) is given up; training goes on."""
    patience: int = 0
    """End once this many scores in a row brought no gain; 0 only says so."""

    @property
    def scored_by_evaluation(self) -> bool:
        return self.score not in ("none", "swd")

    @property
    def evaluation_count(self) -> int:
        """Images per evaluation."""
        return self.eval_count or self.score_count

    @property
    def evaluates(self) -> bool:
        return self.eval_every > 0 or self.scored_by_evaluation

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        allowed = "'none', 'swd' or the name of a score, such as fid, kid or clip_score"
        check(self.score.isidentifier() and self.score.isascii(), "score", self.score, allowed)
        for name in ("score_count", "eval_count"):
            value = getattr(self, name)
            check(value is None or 1 <= value <= 10**9, name, value, "a whole number of at least 1")
        for name in ("eval_every", "patience"):
            check(0 <= getattr(self, name) <= 2**62, name, getattr(self, name), "a whole number of at least 0")
        check(0 < self.eval_minutes <= 10**5, "eval_minutes", self.eval_minutes, "a number of minutes above 0")
