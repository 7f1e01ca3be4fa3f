"""Watching a run: what the numbers of a stretch of steps say, in plain language, and what is to be done about it."""

from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check


@dataclass(frozen=True)
class WatchOptions:
    """Thresholds of the monitor, and what it may do."""

    watch_loss_low: float = 0.1
    """D's loss below this: D is winning, G learns nothing from it."""
    watch_spike: float = 5.0
    """Either loss above this in a step: a spike."""
    watch_logit: float = 20.0
    """Mean logits beyond plus or minus this: D's verdicts are extreme."""
    watch_diverged: float = 100.0
    """Losses or mean logits beyond this over a whole log interval: training has diverged (see on_divergence)."""
    watch_norm: float = 100.0
    """Gradient norm above this many times its median so far: a warning."""
    watch_scale: float = 16.0
    """fp16 loss scale below this: a warning. Below 1 the run ends."""
    watch_diversity: float = 0.1
    """Pictures of one prompt and different noise differ by less than this share of what real pictures differ by:
    mode collapse."""
    watch_text: float = 0.1
    """Pictures of one noise and different prompts differ by less than this share: the text is ignored."""
    watch_after: int = 500
    """Steps before diversity and text are judged: before, every run looks collapsed."""
    on_divergence: Literal["rollback", "stop"] = "rollback"
    """'rollback': go back to the last good checkpoint with the changes below. 'stop': end with exit code 3."""
    max_rollbacks: int = 3
    """Rollbacks in one run before it ends with exit code 3."""
    rollback_lr: float = 0.5
    """Each rollback multiplies both learning rates by this."""
    rollback_r1: float = 2.0
    """Each rollback multiplies the R1 and R2 penalties by this."""
    rollback_skip: int = 100
    """Each rollback leaves out the pictures of this many steps."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when all samples of a prompt look alike: say so, or end with exit code 3."""
    on_d_winning: Literal["warn", "lower_d_steps"] = "warn"
    """What to do when D is winning: say so, or take one step off d_steps as well (never below 1)."""

    def check_watching(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("watch_loss_low", "watch_spike", "watch_logit", "watch_diverged", "watch_norm", "watch_scale",
                     "watch_diversity", "watch_text"):  # fmt: skip
            check(0 <= getattr(self, name) < 1e30, name, getattr(self, name), "a finite number of at least 0")
        for name in ("watch_after", "max_rollbacks", "rollback_skip"):
            check(0 <= getattr(self, name) <= 10**9, name, getattr(self, name), "a whole number of at least 0")
        check(0 < self.rollback_lr <= 1, "rollback_lr", self.rollback_lr, "above 0 and at most 1")
        check(0 < self.rollback_r1 <= 100, "rollback_r1", self.rollback_r1, "above 0 and at most 100")
