"""Command: python -m benchmarks.ablate GRID.yaml -> OUT/results.json, table.md, plot.png, grid.png.

From the repository's root; the same command goes on where it was. A grid:

    data: data/shards            # for all variants alike
    test: data/test_shards       # other real images, for the floor (may be left out)
    kimg: 20.48                  # thousand images shown to D, equal for all
    seeds: [0, 1, 2]
    evaluate: {times: 4, count: 1000, metrics: "fid,kid,precision_recall,diversity,probe", weights: null, layer: 2048}
    criterion: fid               # what the best are picked by
    control: base                # what the others are judged against (default: the first)
    base: {config: configs/t4.yaml, base_ch: 16}
    variants:
      base: {}
      nonsaturating: {loss: nonsaturating, lr_g: 1e-4}
      seed: {config: configs/seed.yaml}       # instead of the base's config and options

Resolution and width of the embeddings are those of the data. `--table OUT ...` draws committed results again.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from benchmarks.ablate.combine import combine
from benchmarks.ablate.floor import measure_floor
from benchmarks.ablate.grid import Grid, read_grid
from benchmarks.ablate.images import draw_images
from benchmarks.ablate.plot import draw_plot
from benchmarks.ablate.results import Results, merge, start
from benchmarks.ablate.runs import Clock, due, measure
from benchmarks.ablate.table import draw_table
from benchmarks.ablate.training import Job, train
from toolkit.command_line import run
from toolkit.durable import write_whole
from toolkit.errors import UserError, check
from toolkit.run_folder.lock import RunLock


@dataclass(frozen=True)
class AblateOptions:
    """Train variants that differ in named options, over seeds, and judge each against the control."""

    paths: list[str] = field(default_factory=list)
    """The grid's YAML file; with --table result files or folders that hold one. May stand first without the flag."""
    out: Path | None = None
    """Folder of runs and results (default: runs/ablate/NAME of the grid; with --table the first path's)."""
    parallel: int = 1
    """Runs at once, each with one thread of PyTorch on a CPU."""
    minutes: float | None = None
    """Start no run that would end later, and stop then; the same command goes on (default: to the end)."""
    device: Literal["auto", "cpu"] = "auto"
    """Where it trains: 'auto' takes a GPU where there is one."""
    retry: bool = False
    """Run those again that failed."""
    keep: bool = False
    """Keep all checkpoints of finished runs, not the averaged generator alone."""
    table: bool = False
    """Only draw table and plot again, from one or several results."""
    combine: bool = False
    """After the grid: add what won alone to the base, the best first, as long as it wins there too."""
    alpha: float = 0.05
    """A difference counts if noise alone makes one such among the variants with less than this probability."""

    def __post_init__(self) -> None:
        check(self.parallel >= 1, "parallel", self.parallel, "at least 1")
        check(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "above 0")
        check(0 < self.alpha < 0.5, "alpha", self.alpha, "above 0 and below 0.5")
        one = len(self.paths) >= 1 if self.table else len(self.paths) == 1
        check(one, "paths", self.paths, "results for --table" if self.table else "one grid file")


def main(options: AblateOptions) -> None:
    torch.set_num_threads(1)
    if options.table:
        results = merge([Path(path) for path in options.paths])
        first = Path(options.paths[0])
        render(results, options.out or (first if first.is_dir() else first.parent), options.alpha)
        return
    grid = read_grid(Path(options.paths[0]), on_gpu=options.device == "auto" and torch.cuda.is_available())
    out = options.out or Path("runs/ablate") / grid.name
    lock = RunLock(out, patience=1)
    clock = Clock(options.minutes)
    results = run_grid(grid, out, clock, options)
    if options.combine:
        found = combine(grid, results, out, lambda *round: run_grid(*round, clock, options), options.alpha)
        print(f"combined: {found.name}; {out / 'combined.yaml'}")
    lock.release()


def run_grid(grid: Grid, out: Path, clock: Clock, options: AblateOptions) -> Results:
    """Everything that is due and fits into the time, then table and images of what there is.

    Raises UserError, after that, if runs are missing.
    """
    results = start(grid, out)
    threads = max(1, (os.cpu_count() or 1) // options.parallel) if grid.on_gpu else 1
    jobs = due(grid, results, out, options.retry, threads=threads, keep=options.keep)
    results.write(out)
    if grid.test and results.floor is None:
        results.floor = measure_floor(grid, out)
        results.write(out)
    missing = measure(jobs, results, out, train, clock, options.parallel)
    if results.runs:
        render(results, out, options.alpha)
        draw_images(grid, results, out)
    if missing:
        raise UserError(describe_missing(missing))
    return results


def render(results: Results, out: Path, alpha: float) -> None:
    """OUT/table.md and plot.png."""
    text = draw_table(results, alpha)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "table.md", text.encode())
    draw_plot(results, out / "plot.png")
    print(text)


def describe_missing(missing: list[Job]) -> str:
    shown = "; ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"{len(missing)} runs are missing: {shown}; run the same command again to go on"


def paths_first(arguments: list[str]) -> list[str]:
    """`GRID --out O`, `--table A B` -> `--paths ["A", "B"]`: the fields of an options class become flags only."""
    ahead = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    paths, rest = arguments[:ahead], arguments[ahead:]
    if "--table" in rest:
        at = rest.index("--table") + 1
        end = next((i for i in range(at, len(rest)) if rest[i].startswith("-")), len(rest))
        paths, rest = paths + [path for path in rest[at:end] if path != "true"], rest[:at] + rest[end:]
    return [*([f"--paths={json.dumps(paths)}"] if paths else []), *rest]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run(main, AblateOptions, paths_first(sys.argv[1:]))
