"""Ours beside what somebody would otherwise use: in turns in one process, behind a gate that both did the same work."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch


class Different(Exception):
    """The two did not compute the same, so their times say nothing; the text says how far apart they are."""


@dataclass(frozen=True)
class Setting:
    """What all benchmarks are given."""

    device: torch.device
    folder: Path
    """For what a benchmark writes: images, shards, random weights."""
    photos: Path | None = None
    """Folder of images to take instead of drawn ones."""
    rounds: int = 7
    """Turns of each way, after one that warms up; slow benchmarks take fewer and say so."""

    def clock(self) -> float:
        """Seconds, once the device has finished: CPU time of this process, so that others on the machine do not count;
        on a GPU wall time, where waiting is part of the work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


@dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` is the median of the rounds' ratios, `lowest` and `highest` their range."""

    benchmark: str
    """Its name, 'training step'."""
    point: str
    """What was done: sizes, options."""
    baseline: str
    """What ours is compared with, with its version."""
    unit: str
    """Of the two rates, 'images/s'."""
    ours: float | None
    theirs: float | None
    ratio: float | None
    """Above 1: ours is faster. None: the gate failed, `parity` says why."""
    lowest: float | None
    highest: float | None
    rounds: int
    parity: str
    """What was compared and how equal it was, 'bitwise' or 'losses of 10 steps within 3e-6'."""
    goal: float | None = None
    """The ratio that was aimed at, as set before measuring."""
    details: dict = field(default_factory=dict)
    """Other numbers, for the JSON file only."""
    note: str = ""
    """Other numbers, for the table."""

    def record(self) -> dict:
        return asdict(self)


def in_turns(
    ways: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float], warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each way in each round: A B C, A B C, ... so that a machine's moods meet all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, work in ways.items():
            start = clock()
            work()
            if number >= warm_up:
                seconds[name].append(clock() - start)
            else:
                clock()
    return seconds


def compared(
    benchmark: str,
    point: str,
    baseline: str,
    unit: str,
    amount: float,
    theirs: list[float],
    ours: list[float],
    parity: str,
    goal: float | None = None,
    note: str = "",
    **details: object,
) -> Row:
    """The row of `amount` units of work, done in these seconds, round by round."""
    ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
    rates = (amount / statistics.median(seconds) for seconds in (ours, theirs))
    return Row(
        benchmark, point, baseline, unit, *rates, statistics.median(ratios), min(ratios), max(ratios), len(ratios),
        parity, goal, details, note,
    )  # fmt: skip


def failed(benchmark: str, point: str, baseline: str, why: Different) -> Row:
    """The row of a comparison whose gate did not open."""
    return Row(benchmark, point, baseline, "", None, None, None, None, None, 0, f"FAILED: {why}")


def check_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> float:
    """Largest difference as a share of the largest value. Raises Different beyond `tolerance`."""
    if ours.shape != theirs.shape:
        raise Different(f"{name} has shape {tuple(ours.shape)} here and {tuple(theirs.shape)} there")
    scale = theirs.double().abs().max().clamp(min=1e-30)
    found = float((ours.double() - theirs.double()).abs().max() / scale)
    if not found <= tolerance:
        raise Different(f"{name} differs by {found:.1e} of its largest value, more than {tolerance:.0e}")
    return found
