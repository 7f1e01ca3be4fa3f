"""How many processes load data: a given number, or found by how long the steps wait."""

import os
import statistics
from typing import Literal

WARM_UP, WINDOW = 4, 16
"""Steps left out after each change, and steps measured then."""
WAITING = 0.05
"""Share of a step's time that it may wait for its data."""
GAIN = 0.05
"""Share of a step's time that more processes must save to be worth their memory."""


def cores() -> int:
    """CPU cores for each of the training processes on this machine, at least one."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class WorkerCount:
    """With 'auto' 0, then 1, 2, 4, ... up to `most` while steps wait and it helps; in the end the fastest of these.

    Which it is depends on the moment, what is loaded does not: a batch is a function of its position.
    """

    def __init__(self, asked: int | Literal["auto"]) -> None:
        self.given = self.settled = asked != "auto"
        self.count = 0 if asked == "auto" else asked
        self.most = cores() if asked == "auto" else asked
        self._seconds: dict[int, float] = {}  # of a step, by the number of processes
        self._steps: list[tuple[float, float]] = []

    def saw(self, waited: float, passed: float) -> str:
        """Take note of a step of `passed` seconds, `waited` of them for data. What is to change by it, or ''."""
        if self.settled:
            return ""
        self._steps.append((waited, passed))
        if len(self._steps) < WARM_UP + WINDOW:
            return ""
        waiting, step = (statistics.median(column) for column in zip(*self._steps[WARM_UP:], strict=True))
        before, self._seconds[self.count], self._steps = self.count, step, []
        # The first process alone only moves the work elsewhere, so it need not help yet.
        helped = before < 2 or step < (1 - GAIN) * self._seconds[before // 2]
        if waiting > WAITING * step and helped and before < self.most:
            self.count = min(self.most, max(1, 2 * before))
        else:
            self.settled, self.count = True, min(self._seconds, key=self._seconds.__getitem__)
        if self.count == before:
            return ""
        return f"steps wait {waiting / step:.0%} of their time for data; {before} -> {self.count} data workers"
