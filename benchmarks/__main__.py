"""Command: python -m benchmarks -> a table of ours beside the others, and benchmarks/results/DATE-DEVICE.json.

From the repository's root. `make bench` runs it on the CPU, `benchmarks/gpu.sh` on a GPU.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.side_by_side import Different, Row, Setting, failed
from benchmarks.table import draw_table
from toolkit.command_line import run
from toolkit.devices import pick_device
from toolkit.errors import UserError, check

PARTS = ("step", "loading", "scoring", "embedding", "inference", "scaling")
"""Modules with a function `rows(setting)`, in the order they are run."""
OURS = {"benchmarks", "toolkit", "shards", "evaluation", "tests"}
"""Packages whose absence is a bug."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class BenchOptions:
    """Measure this toolkit beside the alternatives, and write down what was found."""

    only: str = ""
    """Which parts, joined by commas: step, loading, scoring, embedding, inference, scaling (default: all)."""
    device: str = "cpu"
    """'cpu', 'cuda' or 'auto'."""
    rounds: int = 7
    """Turns of each way; slow ones take fewer."""
    photos: Path | None = None
    """Folder of images to take (default: drawn ones)."""
    folder: Path | None = None
    """Where images, shards and random weights are put (default: a temporary folder)."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    threads: int = 1
    """Threads of PyTorch on the CPU."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.parts if name not in PARTS]
        check(not unknown, "--only", self.only, f"names out of {', '.join(PARTS)}, joined by commas")
        check(self.rounds > 0, "--rounds", self.rounds, "at least 1")

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.only.split(",") if name.strip()) or PARTS


def main(options: BenchOptions) -> None:
    device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    file, found = options.out / f"{time.strftime('%Y-%m-%d')}-{name_of(device)}.json", []
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(device, options.folder or Path(scratch), options.photos, options.rounds)
        for row in measure(options.parts, setting):
            found.append(row)
            write(file, device, options.threads, found)  # each time: a kill loses no row
    print(draw_table(found))
    print(f"\n{file}")
    if broken := [row for row in found if row.ratio is None]:
        raise UserError(f"{len(broken)} of {len(found)} comparisons did not compute the same: {broken[0].parity}")


def measure(parts: tuple[str, ...], setting: Setting) -> Iterator[Row]:
    """The rows of each part; a gate that does not open, or a rival that is not installed, ends its part only."""
    for name in parts:
        start = time.perf_counter()
        try:
            rows: Callable[[Setting], Iterator[Row]] = import_module(f"benchmarks.{name}").rows
            for row in rows(setting):
                print(f"{row.benchmark}, {row.point}: {row.ratio:.2f} x {row.baseline}", file=sys.stderr)
                yield row
        except Different as why:
            yield failed(name, "", "", why)
        except ModuleNotFoundError as missing:
            if missing.name.partition(".")[0] in OURS:
                raise
            print(f"{name}: left out, for {missing.name} is not installed", file=sys.stderr)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def write(file: Path, device: torch.device, threads: int, rows: list[Row]) -> None:
    """One JSON object: what it ran on, and the rows. Rows of other parts measured that day stay."""
    old = json.loads(file.read_text())["rows"] if file.exists() else []
    measured = {(row.benchmark, row.point, row.baseline) for row in rows}
    kept = [row for row in old if (row["benchmark"], row["point"], row["baseline"]) not in measured]
    record = {
        "device": describe(device),
        "torch": torch.__version__,
        "threads": threads,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "rows": kept + [row.record() for row in rows],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")


def describe(device: torch.device) -> str:
    """'NVIDIA H100 80GB HBM3', '2 CPU cores'."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"


def name_of(device: torch.device) -> str:
    return re.sub(r"[^a-z0-9]+", "-", describe(device).lower()).strip("-")


if __name__ == "__main__":
    run(main, BenchOptions)
