"""Watching a run: what the numbers of a stretch of steps say, in plain language, and what is to be done about it."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check
from toolkit.health.signs import RULES, SCALES, WINDOW, Finding, Reading, diverged

LEVELS = ("note", "warning", "action")
MEMORY = 200
"""Log lines that medians reach back."""
REPEAT = 20
"""Log lines after which a finding that persists is told again."""


@dataclass(frozen=True)
class WatchOptions:
    """Monitor: thresholds and actions"""

    watch_loss_low: float = 0.1
    """D's loss below this: D is winning, G learns nothing from it."""
    watch_spike: float = 5.0
    """Either loss above this in a step: a spike. With the relativistic loss above twice its usual level, too."""
    watch_logit: float = 20.0
    """Mean logits beyond plus or minus this (loss 'relativistic': their differences): D's verdicts are extreme."""
    watch_diverged: float = 100.0
    """Losses or mean logits beyond this over a whole log interval: training has diverged (see on_divergence)."""
    watch_norm: float = 100.0
    """Gradient norm above this many times its median over the last 200 log lines: a warning."""
    watch_scale: float = 16.0
    """fp16 loss scale below this: a warning. Below 1 training has diverged."""
    watch_diversity: float = 0.05
    """Images of one prompt and different noise differ by less than this share of what real images differ by:
    mode collapse."""
    watch_text: float = 0.1
    """Images of one noise and different prompts differ by less than this share: the text is ignored."""
    watch_after: int = 500
    """Steps before diversity, text and the usual size of losses are judged: before, every run looks collapsed."""
    on_divergence: Literal["rollback", "stop"] = "rollback"
    """'rollback': go back to the last good checkpoint with the changes below. 'stop': end with exit code 3."""
    max_rollbacks: int = 3
    """Rollbacks in one run before it ends with exit code 3."""
    rollback_lr: float = 0.5
    """Each rollback multiplies both learning rates by this."""
    rollback_r1: float = 2.0
    """Each rollback multiplies the R1 and R2 penalties by this."""
    rollback_skip: int = 100
    """Each rollback leaves out the images of this many steps."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when all samples of a prompt look alike: say so, or end with exit code 3."""
    on_d_winning: Literal["warn", "lower_d_steps"] = "warn"
    """What to do when D is winning: say so, or, every fifth log line in a row, take one step off d_steps as well (never
    below 1)."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("watch_loss_low", "watch_spike", "watch_logit", "watch_diverged", "watch_norm", "watch_scale",
                     "watch_diversity", "watch_text"):  # fmt: skip
            check(0 <= getattr(self, name) < 1e30, name, getattr(self, name), "a finite number of at least 0")
        for name in ("watch_after", "max_rollbacks", "rollback_skip"):
            check(0 <= getattr(self, name) <= 10**9, name, getattr(self, name), "a whole number of at least 0")
        check(0 < self.rollback_lr <= 1, "rollback_lr", self.rollback_lr, "above 0 and at most 1")
        check(0 < self.rollback_r1 <= 100, "rollback_r1", self.rollback_r1, "above 0 and at most 100")


class Monitor:
    """Lays the rules of signs.py on log lines. Plain floats and no clock: on equal lines all processes decide alike."""

    def __init__(self, options: WatchOptions, loss: str, history: Sequence[dict] = ()) -> None:
        """`history`: the lines logged before a resumption; what follows is judged as if never interrupted."""
        self.options, self.loss = options, loss
        self._lines: deque[dict] = deque(maxlen=MEMORY)  # finite numbers only
        self._active: dict[str, Finding] = {}
        self._told: dict[str, tuple[int, int]] = {}  # name -> level and line number when last returned
        self._seen: dict[str, int] = {}  # name -> line number when last found
        self._count = self._step = self._winning = 0  # lines, step of the last, lines in a row with D winning
        for line in history:
            self.observe(line)

    def observe(self, line: dict) -> list[Finding]:
        """Judge one line of training_log.json (means since the line before); values may be missing, None or not finite.

        Returns what is worth telling: findings that are new (not found in the last 5 lines), at a higher level than
        when last told, or told 20 lines ago; actions always, and 'diverged' alone, as it explains the rest. A line
        whose step is not beyond the last one follows a rollback: the lines it replaces are forgotten.
        """
        finite = {name: value for name, value in line.items() if _is_finite(value)}
        finite.setdefault("step", self._step + 1)
        if finite["step"] <= self._step:
            self._forget_from(finite["step"])
        self._count, self._step = self._count + 1, finite["step"]
        end = diverged(line, finite, self.options, self.loss)
        if end is not None:
            self._active, self._winning = {end.name: end}, 0
            return [end]
        settled = finite["step"] >= self.options.watch_after
        self._judge(Reading(finite, list(self._lines), self.options, self.loss, SCALES[self.loss], settled))
        self._lines.append(finite)
        return [finding for finding in self._active.values() if self._worth_telling(finding)]

    def verdict(self) -> str:
        """One line on the present state: the worst finding and the names of the others, or "healthy" with numbers."""
        if not self._count:
            return "nothing logged yet"
        if not self._active:
            return f"healthy{'' if self._step >= self.options.watch_after else ' so far'}{self._numbers()}"
        worst, *others = sorted(self._active.values(), key=lambda finding: -LEVELS.index(finding.level))
        also = ", ".join(finding.name for finding in others)
        kind = "healthy, with a note: " if worst.level == "note" else ""
        return kind + worst.text + (f" (also: {also})" if also else "")

    def _judge(self, now: Reading) -> None:
        """Bring `_active` up to date; what this line cannot judge stays."""
        active: dict[str, Finding] = {}
        for name, rule in RULES.items():
            judged = all(key in now.line for key in rule.needs)
            found = rule.judge(now) if judged else self._active.get(name)
            if found is not None and found.action and not judged:
                found = found._replace(level="warning", action="")  # asked for once: a resumed run gets its chance
            if found is not None and not (name == "loss_range" and active):  # the others say it better
                active[name] = self._take_d_step(found, now.line) if name == "d_winning" and judged else found
        self._winning = self._winning if "d_winning" in active else 0
        self._active = active

    def _take_d_step(self, finding: Finding, line: dict) -> Finding:
        """The action of `on_d_winning`, once D has been winning for WINDOW lines since it began or since the last."""
        self._winning += 1
        lower = self.options.on_d_winning == "lower_d_steps" and line.get("d_steps", 1) > 1
        if not lower or self._winning < WINDOW:
            return finding
        self._winning = 0
        return finding._replace(level="action", action="lower_d_steps")

    def _worth_telling(self, finding: Finding) -> bool:
        level = LEVELS.index(finding.level)
        before, at = self._told.get(finding.name, (-1, -REPEAT))
        gone = self._count - self._seen.get(finding.name, -REPEAT) > WINDOW
        self._seen[finding.name] = self._count
        told = bool(finding.action) or gone or level > before or self._count - at >= REPEAT
        if told:
            self._told[finding.name] = level, self._count
        return told

    def _forget_from(self, step: float) -> None:
        self._lines = deque((line for line in self._lines if line["step"] < step), maxlen=MEMORY)
        self._active, self._winning = {}, 0

    def _numbers(self) -> str:
        """Of the last line: ": D loss 1.2, G loss 0.4, ..."."""
        names = {"loss_d": "D loss", "loss_g": "G loss", "logit_real": "logits real", "logit_fake": "generated"}
        last = self._lines[-1] if self._lines else {}
        shown = ", ".join(f"{shown} {last[name]:.2f}" for name, shown in names.items() if name in last)
        return f": {shown}" if shown else ""


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
