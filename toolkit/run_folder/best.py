"""best.json: the scores of a run's checkpoints, which of them is the best, and whether training still pays."""

import json
import math
import sys
from pathlib import Path

from tqdm import tqdm

from toolkit.durable import write_whole
from toolkit.errors import UserError
from toolkit.run_folder.checkpoint import checkpoint_name, checkpoints

BEST = "best.json"
GAIN = 0.01
"""A score is a gain if it is better than that of the last gain by more than this part of it. Scores of one network
drawn anew differ by about as much; slow progress still counts once its small steps add up to that."""
FITTED = 5
"""Fewest scores without gain that a line is fitted to before training is said to have stopped paying."""


class BestCheckpoint:
    """Scores in the order of their steps. The main process alone makes one."""

    def __init__(
        self, run: Path, metric: str, step: int | None = None, higher_is_better: bool = False, formerly: str = ""
    ) -> None:
        """Goes on with run/best.json, less the scores after `step` (the one resumed from; None: all stay).

        `formerly`: what the metric was called in files that do not say which way is better, as once none did. A file of
        another metric is set aside as best_METRIC.json, a damaged one as best_damaged.json, both with a line on stderr.
        """
        self.path, self.metric, self.formerly = run / BEST, metric, formerly or metric
        self.higher_is_better = higher_is_better
        self.history = [(at, value) for at, value in self._read() if step is None or at <= step]
        if self.path.is_file():
            self._write()

    @property
    def step(self) -> int | None:
        """The step of the best score, whose checkpoint is worth keeping; None before the first finite one."""
        found = self._best()
        return found[0] if found else None

    @property
    def without_gain(self) -> int:
        """How many scores came since the last gain; one that is not finite is no gain."""
        return len(self.history) - 1 - last_gain(self._losses()) if self.history else 0

    def _losses(self) -> list[tuple[int, float]]:
        """The history so that lower is better."""
        return [(step, -value) for step, value in self.history] if self.higher_is_better else self.history

    def add(self, step: int, value: float) -> str:
        """Note the score of the checkpoint at `step`; one already noted for that step is replaced. Returns a sentence.

        A file that cannot be written (disk full) is said in the sentence: a score must not end a run.
        """
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, float(value))]
        written = self._write()
        said = f"{self.metric} {value:.4g} at step {step:,}: {self._verdict()}"
        if self._no_longer_pays():
            said += f"; more training has not paid since step {self.history[last_gain(self._losses())][0]:,}"
        return said + written

    def _verdict(self) -> str:
        waiting, best = self.without_gain, self._best()
        if best is None:
            return "not a number"
        since = f"no gain of {GAIN:.0%} for {waiting} score{'s' * (waiting != 1)}"
        if best == self.history[-1]:
            return f"the best so far, but {since}" if waiting else "the best so far"
        return f"{since}, the best is {best[1]:.4g} at step {best[0]:,}"

    def _no_longer_pays(self) -> bool:
        """Whether the line fitted to the scores since the last gain falls by less than GAIN of their mean, or by less
        than the standard error of that fall.

        The last gain itself is left out: being the best of many, it was lucky, and any line from it would rise.
        """
        losses = self._losses()
        scores = [entry for entry in losses[last_gain(losses) + 1 :] if math.isfinite(entry[1])]
        if len(scores) < FITTED:
            return False
        mean_value = sum(value for _, value in scores) / len(scores)
        fall, error = fitted_fall(scores)
        return fall < max(GAIN * abs(mean_value), error)

    def _best(self) -> tuple[int, float] | None:
        finite = [entry for entry in self.history if math.isfinite(entry[1])]
        sign = -1 if self.higher_is_better else 1
        return min(finite, key=lambda entry: sign * entry[1], default=None)

    def _write(self) -> str:
        step, value = self._best() or (None, None)
        history = [[at, score if math.isfinite(score) else None] for at, score in self.history]
        about = {"metric": self.metric, "higher_is_better": self.higher_is_better, "value": value, "step": step}
        about |= {"checkpoint": None if step is None else checkpoint_name(step), "history": history}
        try:
            write_whole(self.path, (json.dumps(about) + "\n").encode())
        except OSError as error:
            return f" ({self.path} not written: {error.strerror})"
        return ""

    def _read(self) -> list[tuple[int, float]]:
        if not self.path.is_file():
            return []
        try:
            about = json.loads(self.path.read_text(encoding="utf-8"))
            metric = str(about["metric"])
            history = sorted((int(at), math.nan if value is None else float(value)) for at, value in about["history"])
        except (OSError, ValueError, KeyError, TypeError):
            self._set_aside("damaged", "is damaged")
            return []
        if metric != (self.metric if "higher_is_better" in about else self.formerly):
            self._set_aside(metric if metric.isidentifier() else "other", f"holds scores by {metric!r}")
            return []
        return history

    def _set_aside(self, name: str, why: str) -> None:
        aside = self.path.with_name(f"best_{name}.json")
        try:
            self.path.replace(aside)
            line = f"{self.path} {why}; set aside as {aside.name}, scores by {self.metric} start anew"
        except OSError as error:
            line = f"{self.path} {why} and cannot be set aside ({error.strerror}); scores start anew"
        tqdm.write(f"train: {line}", file=sys.stderr)


def best_checkpoint(run: Path) -> Path:
    """The checkpoint that best.json names. Raises UserError if there is none."""
    try:
        name = json.loads((run / BEST).read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    known = {folder.name: folder for folder in checkpoints(run)}
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{run / BEST} names no checkpoint; give one by its folder ({run}/ckpt_*)")
    return known[name]


def last_gain(history: list[tuple[int, float]]) -> int:
    """Position of the last score lower than the gain before it by more than GAIN; the first finite one is a gain.

    -1 if there is none.
    """
    gain = -1
    for position, (_, value) in enumerate(history):
        if math.isfinite(value):
            reference = history[gain][1] if gain >= 0 else math.inf
            if gain < 0 or value < reference - GAIN * abs(reference):
                gain = position
    return gain


def fitted_fall(scores: list[tuple[int, float]]) -> tuple[float, float]:
    """How far the least-squares line through at least three (step, value) falls from the first step to the last, and
    the standard error of that."""
    steps, values = zip(*scores, strict=True)
    mean_step, mean_value = sum(steps) / len(steps), sum(values) / len(values)
    spread = sum((step - mean_step) ** 2 for step in steps)
    slope = sum((step - mean_step) * (value - mean_value) for step, value in scores) / spread
    rest = sum((value - mean_value - slope * (step - mean_step)) ** 2 for step, value in scores)
    reach = steps[-1] - steps[0]
    return -slope * reach, reach * math.sqrt(rest / (len(scores) - 2) / spread)
