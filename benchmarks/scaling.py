"""Training on several processes beside one, at the same batch per process (weak scaling), and where the time goes.

'ours' is the rate of N processes, 'theirs' N times the rate of one: the ratio is the efficiency. One process and
several take turns of steps; both stay alive and sleep while the others work. On a CPU there are two, of one thread,
which exchange gradients over gloo; with GPUs 2, 4, ... all of them, over NCCL. Times are wall time.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch

from benchmarks.scaling_model import Link, all_reduce_seconds, step_seconds, waiting_seconds
from benchmarks.scaling_worker import COLUMNS, PARITY_STEPS, WorkerOptions
from benchmarks.side_by_side import Different, Row, Setting, compared, in_turns
from benchmarks.step_pair import drawn_shards
from toolkit.errors import UserError

NAME = "processes"
CPU = torch.device("cpu")
ROUNDS = 5
SIZES = {
    "cpu": {"resolution": 64, "base_ch": 16, "batch": 4, "steps": 4},
    "cuda": {"resolution": 128, "base_ch": 64, "batch": 64, "steps": 20, "workers": 2, "mixed_precision": "bf16"},
}


def rows(setting: Setting, **sizes: int) -> Iterator[Row]:
    """A row per number of processes; none on a machine with one GPU. `sizes` replace those of WorkerOptions."""
    options, parity = worker_options(setting, setting.device.type, **sizes), None
    for count in process_counts(setting.device):
        if setting.device.type == "cuda":  # where sums are rounded differently from one time to the next
            parity = parity or parity_on_cpu(worker_options(setting, "cpu"), setting.folder)
        with (
            Session(options, 1, setting.device, setting.folder) as one,
            Session(options, count, setting.device, setting.folder) as several,
        ):
            yield measure(one, several, min(setting.rounds, ROUNDS), parity or compare_weights(one, several))


def worker_options(setting: Setting, kind: str, **sizes: int) -> WorkerOptions:
    """For 'cpu' or 'cuda', with shards that are drawn if need be."""
    sizes = {**SIZES[kind], **sizes}
    return WorkerOptions(drawn_shards(setting.folder, sizes["resolution"]).resolve(), **sizes)


def process_counts(device: torch.device) -> list[int]:
    """Those to be compared with one: 2 on a CPU, 2, 4, ... and all GPUs."""
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    return sorted({count for count in (2**k for k in range(1, most.bit_length())) if count < most} | {most} - {1})


class Session:
    """So many processes of scaling_worker.py, which wait for turns. `device` cpu also where there are GPUs."""

    def __init__(self, options: WorkerOptions, count: int, device: torch.device, folder: Path) -> None:
        self.options, self.count, self.log = options, count, folder / f"scaling-{count}.log"
        flags = [f"--{name}={value}" for name, value in asdict(options).items()]
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "-m"] if count > 1 else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if device.type == "cpu":
            environment["ACCELERATE_USE_CPU"] = "true"
        with self.log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *launcher, "benchmarks.scaling_worker", *flags],
                cwd=Path(__file__).parents[1], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip

    def ask(self, turn: str) -> dict:
        """Let them take a turn of worker.TURNS. Raises UserError if they cannot."""
        try:
            self._process.stdin.write(f"{turn}\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            said = self.log.read_text(errors="replace").strip().splitlines()[-20:]
            raise UserError(f"{self.count} processes could not take the turn '{turn}'; they said: {said}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._process.communicate(timeout=30)  # closes their input, which ends them
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()


def parity_on_cpu(options: WorkerOptions, folder: Path) -> str:
    """Of processes that are started for it alone. Raises Different."""
    with Session(options, 1, CPU, folder) as one, Session(options, 2, CPU, folder) as two:
        return compare_weights(one, two)


def compare_weights(one: Session, several: Session) -> str:
    """A small training must come to the same weights on both. Raises Different."""
    found = [session.ask("parity") for session in (one, several)]
    if [answer["processes"] for answer in found] != [one.count, several.count] or found[0]["sha256"] != found[1][
        "sha256"
    ]:
        raise Different(f"weights after {PARITY_STEPS} steps on {several.count} processes are not those on {one.count}")
    return f"weights after {PARITY_STEPS} steps bitwise"


def measure(one: Session, several: Session, rounds: int, parity: str) -> Row:
    """All ways in turns; the row tells the efficiency, its details where the rest went, and what the model says."""
    splits: dict[str, list] = {"one": [], "several": []}
    ways = {
        "one": lambda: one.ask("steps"),
        "several": lambda: several.ask("steps"),
        "silent": lambda: several.ask("silent"),
        "split one": lambda: splits["one"].append(one.ask("split")),
        "split several": lambda: splits["several"].append(several.ask("split")),
    }
    turns = in_turns(ways, rounds, time.perf_counter)
    options, count = several.options, several.count
    steps = {name: statistics.median(seconds) / options.steps for name, seconds in turns.items()}
    parts = {name: Split.of(found[1:]) for name, found in splits.items()}
    slowdown, reduced = parts["several"].compute / parts["one"].compute, several.ask("reduce")
    predicted = {  # from one process alone, and with what the others on the machine were seen to cost
        "apart": predict(count, steps["one"], parts["one"].variation, reduced),
        "shared": predict(count, steps["one"], parts["several"].variation, reduced, slowdown),
    }
    return compared(
        NAME, f"{options.resolution} px, base_ch {options.base_ch}, {options.batch} images each, {count} processes",
        f"{count} times 1 process", "images/s", count * options.batch * options.steps, turns["one"],
        turns["several"], parity, step_seconds=steps, slowdown=slowdown, all_reduce_alone=reduced,
        split={name: asdict(part) for name, part in parts.items()}, predicted=predicted,
    )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Where a step's seconds go, with nothing hidden: medians over the steps of the mean over the processes."""

    step: float
    data: float
    compute: float
    waiting: float
    """For the slowest process."""
    exchange: float
    optimizer: float
    """And the average."""
    buckets: float
    variation: float
    """Standard deviation, within a turn, of what one process does by itself in a step, as a share of its mean."""

    @classmethod
    def of(cls, answers: list[dict]) -> Self:
        """From the answers to 'split'."""
        turns = torch.tensor(
            [answer["steps"] for answer in answers], dtype=torch.float64
        )  # turn, process, step, column
        mean = dict(zip(COLUMNS, _median(turns.mean(1)).tolist(), strict=True))
        data, waiting, exchange, _, optimizer, step = turns.unbind(3)
        own = step - waiting - exchange
        variation = float(own.var(2).mean().sqrt() / own.mean())
        return cls(**mean, compute=float(_median((own - data - optimizer).mean(1))), variation=variation)


def _median(values: torch.Tensor) -> torch.Tensor:
    """Over turns and steps, the first two dimensions."""
    return values.flatten(0, 1).quantile(0.5, 0)


def predict(count: int, alone: float, variation: float, reduced: dict, slowdown: float = 1.0) -> list[float]:
    """Efficiency by the model, with nothing and with all that can be hidden: `alone` seconds a step of one process.

    `reduced`: the answer to 'reduce', which tells the link. `slowdown`: of computing, by others on the same machine.
    """
    size = sum(reduced["bytes"].values())
    moving = max(1e-9, reduced["seconds"] - reduced["buckets"] * reduced["latency"])
    link = Link(2 * (count - 1) / count * size / moving, reduced["latency"])
    exchange = sum(all_reduce_seconds(part, count, link) for part in reduced["bytes"].values())
    computing = alone * slowdown
    waiting = waiting_seconds(count, computing, variation)
    return [alone / step_seconds(computing, exchange, waiting, overlap) for overlap in (0, 1)]
