"""A process of benchmarks/scaling.py: trains in turns. A line on standard input names a turn, a line on standard output
holds what came of it, as JSON; end of input ends it. Started alone or by torchrun, whose main process reads and writes.
"""

import contextlib
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed
from accelerate.state import PartialState

from benchmarks.scaling_model import BUCKET, FIRST_BUCKET, NETWORKS
from toolkit.command_line import run
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import check
from toolkit.launching.launch import start_accelerator
from toolkit.launching.processes import Processes
from toolkit.networks.models import count_parameters
from toolkit.training.earlier import TRAINING
from toolkit.training.trainer import Trainer

TURNS = ("end", "parity", "steps", "silent", "split", "reduce")
COLUMNS = ("data", "waiting", "exchange", "buckets", "optimizer", "step")
"""Of a step in a split: seconds, but for the number of buckets."""
NEVER = 10**9
TIMEOUT = 120
PARITY = {"base_ch": 4, "batch": 8, "batch_gpu": 4, "r1_interval": 2}
PARITY_STEPS = 3
REPEATS = 5


@dataclass(frozen=True)
class WorkerOptions:
    """Train in turns that standard input asks for."""

    data: Path
    """Shards."""
    resolution: int = 64
    """Side of their images in pixels."""
    base_ch: int = 16
    """Width of the networks."""
    batch: int = 4
    """Images per process and step."""
    steps: int = 6
    """Steps of a turn."""
    workers: int = 0
    """Loading processes of each."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the networks."""

    def __post_init__(self) -> None:
        check(self.steps > 0, "--steps", self.steps, "at least 1")

    def config(self, processes: int) -> ResolvedConfig:
        """Steps without R1, whose exchange is the same and whose computation is longer."""
        return ResolvedConfig(
            data=str(self.data), resolution=self.resolution, base_ch=self.base_ch, batch=self.batch * processes,
            g_norm="group", r1_interval=NEVER, workers=self.workers, resident=False, timeout=TIMEOUT,
            mixed_precision=self.mixed_precision, loss="hinge", r2_penalty=0, d_steps=1, **NETWORKS, **TRAINING,
            diffaug="color,translation,cutout", lr_g=1e-4, lr_d=2e-4, ema_ramp=False,
        )  # fmt: skip


def main(options: WorkerOptions) -> None:
    torch.set_num_threads(1)
    worker = Worker(options)
    for answer in worker.answers(sys.stdin):
        if worker.processes.main:
            print(json.dumps(answer), flush=True)
    PartialState().destroy_process_group()


class Worker:
    """One of the processes. All methods but the private ones are called by all of them at the same point."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.accelerator = start_accelerator(options.config(1))
        self.config = options.config(self.accelerator.num_processes)
        self.processes = Processes(self.accelerator, TIMEOUT)
        self.trainer, self.watched = (self._trainer(self.config) for _ in range(2))
        self.spent: Counter[str] = Counter()
        self._watch()

    def answers(self, lines: Iterable[str]) -> Iterator[dict]:
        """What came of each turn."""
        turns = {"parity": self.parity, "steps": self.steps, "silent": self.silent, "split": self.split,
                 "reduce": self.reduce}  # fmt: skip
        lines = iter(lines) if self.processes.main else None
        while True:
            asked = TURNS.index(next(lines, "end").strip()) if lines else 0
            turn = TURNS[self.processes.largest(asked)]
            if turn == "end":
                return
            yield turns[turn]()

    def steps(self) -> dict:
        """As in training: DDP exchanges gradients while the backward pass goes on."""
        for _ in range(self.options.steps):
            self.trainer.step()
        self._meet()
        return {}

    def silent(self) -> dict:
        """Without exchange: what so many processes at once cost each other."""
        with self.accelerator.no_sync(self.trainer.G), self.accelerator.no_sync(self.trainer.D):
            return self.steps()

    def split(self) -> dict:
        """Every step of every process, in COLUMNS. Each exchange waits first for the others, then for its own end, so
        nothing of it is hidden."""
        rows = []
        for _ in range(self.options.steps):
            self.spent.clear()
            with self._timed("step"):
                with self._timed("data"):
                    self.watched.fetch()
                self.watched.step()
            rows.append([self.spent[name] for name in COLUMNS])
        return {"steps": [found.tolist() for found in self.processes.gather(torch.tensor(rows))]}

    def reduce(self) -> dict:
        """All-reduces of buckets as large as DDP's, with nothing else to do: seconds of a step's, and of the least."""
        whole = {name: 4 * count_parameters(getattr(self.trainer, name)) for name in "GD"}
        buckets = [size // 4 for network in whole.values() for size in in_buckets(network)]
        seconds, latency = (self._all_reduces(sizes) for sizes in (buckets, [1] * 10))
        return {"bytes": whole, "seconds": seconds, "buckets": len(buckets), "latency": latency / 10}

    def parity(self) -> dict:
        """SHA-256 of all weights after a few steps of the same small training on any number of processes."""
        trainer = self._trainer(replace(self.config, **PARITY))
        trainer.step_number = 0
        for _ in range(PARITY_STEPS):
            trainer.step()
        digest = hashlib.sha256()
        for network in (trainer.G, trainer.D):
            for values in trainer.unwrap(network).state_dict().values():
                digest.update(values.cpu().numpy().tobytes())
        return {"sha256": digest.hexdigest(), "processes": self.processes.count}

    def _trainer(self, config: ResolvedConfig) -> Trainer:
        trainer = Trainer(config, self.accelerator, ShardSet(self.options.data))
        trainer.step_number = 1  # step 0 has R1
        return trainer

    def _all_reduces(self, counts: list[int]) -> float:
        """Median seconds of summing so many numbers, one tensor after the other."""
        tensors, found = [torch.zeros(count, device=self.trainer.device) for count in counts], []
        for _ in range(1 + REPEATS):
            start = self._meet()
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
            found.append(self._now() - start)
        return sorted(found[1:])[REPEATS // 2]

    def _watch(self) -> None:
        """Take the times of `watched`: of its exchanges, its optimizers and its average."""
        for owner, method in ((self.watched.phases["G"], "step"), (self.watched.phases["D"], "step"),
                              (self.watched.ema, "update")):  # fmt: skip
            setattr(owner, method, self._timing(getattr(owner, method)))
        if self.processes.count > 1:
            for network in (self.watched.G, self.watched.D):
                network.register_comm_hook(None, self._exchange)

    def _exchange(self, state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DDP's own all-reduce, one at a time and with a clock."""
        gradients = bucket.buffer()
        with self._timed("waiting"):
            self._meet()
        with self._timed("exchange"):
            torch.distributed.all_reduce(gradients.div_(self.processes.count))
        self.spent["buckets"] += 1
        done = torch.futures.Future(devices=[gradients.device] if gradients.is_cuda else None)
        done.set_result(gradients)
        return done

    def _timing(self, method: Callable) -> Callable:
        def timed(*arguments: object) -> object:
            with self._timed("optimizer"):
                return method(*arguments)

        return timed

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.spent[name] += self._now() - start

    def _meet(self) -> float:
        """The time, once all processes are here."""
        self._now()
        self.processes.largest(0)
        return time.perf_counter()

    def _now(self) -> float:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        return time.perf_counter()


def in_buckets(size: int) -> list[int]:
    """Bytes of the buckets that DDP makes of `size`, but for the bounds of parameters."""
    rest = max(0, size - FIRST_BUCKET)
    return [size - rest, *([BUCKET] * (rest // BUCKET)), *([rest % BUCKET] if rest % BUCKET else [])]


if __name__ == "__main__":
    run(main, WorkerOptions)
