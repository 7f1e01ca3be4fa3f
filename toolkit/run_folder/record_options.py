"""Options of what a run writes: log, samples, checkpoints, trackers."""

from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check, named_in

TRACKER_NAMES = ("wandb", "tensorboard")


@dataclass(frozen=True)
class RecordOptions:
    """Log, samples, checkpoints, trackers"""

    log_every: int = 50
    """Steps between lines of training_log.json."""
    sample_every: int = 1000
    """Steps between sample grids and plots."""
    n_sample: int = 32
    """Images in a sample grid: four noise vectors for each of n_sample / 4 captions."""
    ckpt_every: int = 5000
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the newest checkpoints stay, at least 2; 0 keeps all. The best by `score` stays besides."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint cannot be written (disk full): go on and try again at the next, or end."""
    track: str = ""
    """Trackers beside the local files: wandb, tensorboard, or both joined by a comma."""
    track_project: str = "text-gan"
    """Project name for the trackers."""
    wandb_mode: Literal["online", "offline"] = "online"
    """Whether wandb sends the run or stores it in out_dir/wandb for `wandb sync`."""

    @property
    def trackers(self) -> tuple[str, ...]:
        return named_in(self.track)

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("log_every", "sample_every", "ckpt_every", "n_sample"):
            check(1 <= getattr(self, name) <= 10**9, name, getattr(self, name), "a whole number of at least 1")
        check(self.keep == 0 or self.keep >= 2, "keep", self.keep, "at least 2 (one may be lost while written), or 0")
        unknown = [name for name in self.trackers if name not in TRACKER_NAMES]
        check(not unknown, "track", self.track, f"names out of {', '.join(TRACKER_NAMES)}, joined by a comma")
