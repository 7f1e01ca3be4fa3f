"""Training runs for tests: in this process where that is enough, as a command where a new process is the point."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import toolkit.train
from tests.conftest import REPOSITORY
from tests.forking import Forked, without_plots_and_estimates
from toolkit import command_line
from toolkit.config import TrainConfig
from toolkit.data.dataset import Batch
from toolkit.data.shard_reader import ShardSet
from toolkit.networks.architecture import EARLIER
from toolkit.run_folder.checkpoint import GENERATOR, NETWORKS, OPTIMIZERS, STATE
from toolkit.run_folder.records import read_log
from toolkit.run_folder.snapshot import PLACES
from toolkit.training.earlier import TRAINING
from toolkit.training.trainer import Trainer

PLAIN = {
    "loss": "hinge", "r1_penalty": 1.0, "r2_penalty": 0.0, "r1_interval": 16, "d_steps": 1, "lr_g": 1e-4, "lr_d": 2e-4,
    "diffaug": "color,translation,cutout", "ema_ramp": False, "mismatch_weight": 1.0,
    **EARLIER, **TRAINING,
}  # fmt: skip
"""A recipe of few parts, whatever the defaults are: what a test says of one part it says of that alone."""
TINY = {
    **PLAIN, "resolution": 16, "base_ch": 4, "z_dim": 8, "d_scales": 2, "batch": 8, "workers": 0, "g_norm": "group",
}  # fmt: skip
QUIET = {**TINY, "log_every": 1, "sample_every": 1000, "ckpt_every": 1000, "n_sample": 6, "score": "none"}
"""Every step in the log; no samples, scores or checkpoints but the first and the last."""
TENSORS = (GENERATOR, NETWORKS, OPTIMIZERS)
parser = functools.cache(command_line._parser)
"""Making it takes a third of a short training, which writes its config with it."""


def train(shard_folder: Path, out_dir: Path, plot: Callable = lambda run: None, **options) -> None:
    """toolkit.train in this process, without the seconds that plots, the memory estimate and a new parser take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the order of a command with OMP_NUM_THREADS=1
    AcceleratorState._reset_state(reset_partial_state=True)
    config = TrainConfig(**{"data": str(shard_folder), "out_dir": str(out_dir), **QUIET, **options})
    try:
        with (
            mock.patch.dict(os.environ, ACCELERATE_USE_CPU="true"),
            mock.patch("toolkit.command_line._parser", parser),
            without_plots_and_estimates(plot),
        ):
            toolkit.train.main(config)
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)


def lone_trainer(shard_folder: Path, precision: str = "no", **options) -> Trainer:
    """A Trainer of one process on the CPU, without a run round it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = TrainConfig(**{"data": str(shard_folder), **TINY, **options}).resolved()
    return Trainer(config, Accelerator(cpu=True, mixed_precision=precision), ShardSet(shard_folder))


def next_batch(trainer: Trainer) -> Batch:
    """The first micro-batch of the trainer's next step."""
    trainer.fetch()
    return trainer.feed.take()[0][0]


def launch(
    shard_folder: Path, out_dir: Path, *arguments: str, processes: int = 1, script: Path | str | None = None,
    launcher: tuple[str, ...] = (), new_python: bool = False, **options,
) -> subprocess.Popen | Forked:  # fmt: skip
    """toolkit/train.py (or a script that stands for it) as users start it, from another folder, with its own group.

    `script`: its path, or the name of a module.

    `new_python`: not forked from a process that has torch already (tests/forking.py), where that is the point.
    """
    command = list(launcher)
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", script] if isinstance(script, str) else [str(script or REPOSITORY / "toolkit" / "train.py")]
    command += [text for name, value in {**QUIET, **options}.items() for text in (f"--{name}", str(value))]
    command += ["--data", str(shard_folder), "--out_dir", str(out_dir), *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if script:
        environment["PYTHONPATH"] = str(REPOSITORY)
    if not new_python:
        return Forked(command, shard_folder, environment)
    return subprocess.Popen(
        [sys.executable, *command], cwd=shard_folder, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | Forked, patience: float = 300) -> None:
    """Until it holds, as long as the process lives."""
    deadline = time.monotonic() + patience
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            raise AssertionError(f"in vain: {finish(process, timeout=10)[-3000:]}")
        time.sleep(0.02)


def newest_step(run: Path) -> int:
    """Of the newest checkpoint or one that is just being replaced, valid or not; -1 without any."""
    return max((int(path.name[-7:]) for path in run.glob("*ckpt_*") if not path.name.startswith(".tmp")), default=-1)


def run_training(shard_folder: Path, out_dir: Path, *arguments: str, code: int = 0, **how) -> str:
    """The command to its end, with a line in the log every other step. Returns stderr."""
    options = {"log_every": 2, "sample_every": 100, "ckpt_every": 100, "r1_interval": 3, "score": "swd", **how}
    process = launch(shard_folder, out_dir, *arguments, **options)
    said = finish(process)
    assert process.returncode == code, said[-3000:]
    return said


def finish(process: subprocess.Popen | Forked, timeout: float = 300) -> str:
    """Wait for a launched command, killing its group if it hangs. Returns its stderr."""
    try:
        return process.communicate(timeout=timeout)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def assert_equal_runs(one: Path, other: Path, step: int, but: tuple[str, ...] = ()) -> None:
    """Checkpoint `step` and the log up to it are bitwise equal, but for paths, speed and the options named."""
    a, b = one / f"ckpt_{step:07d}", other / f"ckpt_{step:07d}"
    names, others = ({path.name for path in folder.glob("*.safetensors")} for folder in (a, b))
    assert names == others and names >= set(TENSORS)
    assert [name for name in sorted(names) if (a / name).read_bytes() != (b / name).read_bytes()] == []
    states = [json.loads((folder / STATE).read_text()) for folder in (a, b)]
    for state in states:
        for name in (*PLACES, *but):
            del state["config"][name]
    assert states[0] == states[1]
    assert logged(one) == logged(other) and len(logged(one)) == step


def logged(run: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in read_log(run)]
