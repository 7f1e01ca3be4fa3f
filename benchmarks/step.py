"""B1, the training step: this toolkit's Trainer beside `plain_loop.py`, on the same images in memory.

'strict' does the same mathematics, R1 at every step; 'lazy' has R1 at every 16th step, of which one with R1 and one
without are timed and weighed 1 to 15; 'max' adds, on a GPU, half precision and what else is faster there.
"""

import statistics
import time
from collections.abc import Iterator

import torch

from benchmarks import step_on_gpu
from benchmarks.side_by_side import Row, Setting, compared, in_turns
from benchmarks.step_pair import BASELINE, LAZY, NAME, NEVER, Pair, Point

CPU_POINTS = (Point(64, 16, 4), Point(128, 32, 4, strict=1.2, lazy=1.55, parity_steps=3))


def rows(setting: Setting) -> Iterator[Row]:
    if setting.device.type == "cuda":
        yield from step_on_gpu.rows(setting)
        return
    for point in CPU_POINTS:
        pair = Pair(point, setting)
        parity = pair.check_parity(point.parity_steps)
        yield from measure(pair, parity)


def measure(pair: Pair, parity: str) -> Iterator[Row]:
    plain = lambda: pair.plain.step(*pair.plain_inputs)  # noqa: E731
    ways = {"plain": plain, "with R1": pair.ours(1), "without": pair.ours(NEVER)}
    seconds = in_turns(ways, pair.setting.rounds, pair.setting.clock)
    lazy = [
        (one + (LAZY - 1) * other) / LAZY for one, other in zip(seconds["with R1"], seconds["without"], strict=True)
    ]
    found = {name: pair.operations(work, name == "plain") for name, work in ways.items()}
    counts, flops = ({name: getattr(c, kind) for name, c in found.items()} for kind in ("count", "flops"))
    for numbers in (counts, flops):
        numbers["lazy"] = (numbers["with R1"] + (LAZY - 1) * numbers["without"]) / LAZY
    peak = cpu_peak()
    kinds = (
        ("strict", "with R1", seconds["with R1"], pair.point.strict),
        ("lazy R1", "lazy", lazy, pair.point.lazy),
    )
    for kind, name, ours, goal in kinds:
        shares = [flops[n] / statistics.median(t) / peak for n, t in (("plain", seconds["plain"]), (name, ours))]
        note = f"operations {counts['plain']:,} → {counts[name]:,.0f}, share of peak {shares[0]:.0%} → {shares[1]:.0%}"
        yield compared(
            NAME, f"{pair.point}, {kind}", BASELINE, "images/s", pair.point.batch, seconds["plain"], ours,
            parity if kind == "strict" else "as strict, R1 every 16th step", goal, note,
            operations=round(counts[name]), operations_theirs=counts["plain"], flops=round(flops[name]),
            flops_theirs=flops["plain"], share_of_peak=shares[1], share_of_peak_theirs=shares[0],
            seconds={name: round(statistics.median(values), 4) for name, values in seconds.items()},
        )  # fmt: skip


def cpu_peak(size: int = 2048) -> float:
    """FLOP/s of fp32 matrix products, the best of five, in CPU time as everything else."""
    a = torch.ones(size, size)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best
