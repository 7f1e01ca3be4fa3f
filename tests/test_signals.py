"""Signals and the stop file, wherever they find a run: a complete checkpoint, the exit code, a bitwise continuation."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.running import assert_equal_runs, finish, launch, train, wait_for
from toolkit.data.shard_reader import ShardSet
from toolkit.launching.stopping import STOP_FILE
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import find_problem
from toolkit.run_folder.records import read_log
from toolkit.run_folder.sample_grid import SampleGrid
from toolkit.training.trainer import Trainer

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EVENTS = {"iters": 6, "sample_every": 2, "ckpt_every": 2, "r1_interval": 3}
WORKER = REPOSITORY / "tests" / "workers" / "train_with_fault.py"


@pytest.fixture(scope="module")
def whole(shard_folder, tmp_path_factory) -> Path:
    """6 steps that nothing disturbs."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(shard_folder, run, **EVENTS)
    return run


def exit_code(shard_folder: Path, run: Path, **options) -> int:
    """Of a training in this process, which handles its signals like any other."""
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        train(shard_folder, run, **{**EVENTS, **options})
    except SystemExit as end:
        return end.code
    finally:
        assert [signal.getsignal(number) for number in SIGNALS] == before
    return 0


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def at_call(monkeypatch, place, name: str, call: int, action) -> None:
    """Run `action` just before the given call (1, 2, ...) of a function."""
    original, calls = getattr(place, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            action()
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, counted)


def assert_stopped_whole_and_goes_on(shard_folder: Path, run: Path, whole: Path, step: int, capsys, words: str) -> None:
    newest, passed_over = checkpoint.newest_valid(run)
    assert newest.name == f"ckpt_{step:07d}" and passed_over == [] and not list(run.glob(".tmp*"))
    assert f"stopped by {words} at step {step:,}, saved {newest}" in capsys.readouterr().err
    assert exit_code(shard_folder, run) == 0
    assert_equal_runs(whole, run, 6)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_a_step_lets_it_end_and_saves(shard_folder, tmp_path, whole, monkeypatch, capsys, number):
    """In the 3rd step, between D's phase and G's."""
    at_call(monkeypatch, Trainer, "generator_loss", 3, lambda: kill(number))
    assert exit_code(shard_folder, tmp_path / "run") == 128 + number
    assert_stopped_whole_and_goes_on(shard_folder, tmp_path / "run", whole, 3, capsys, number.name)


@pytest.mark.parametrize("place", ["sampling", "saving", "pruning"])
def test_a_signal_while_sampling_or_saving_waits_for_its_end(shard_folder, tmp_path, whole, monkeypatch, capsys, place):
    """Both happen at step 2; the 2nd save is the one at step 2, the first was at the start."""
    where = {"sampling": (SampleGrid, "draw", 1), "saving": (checkpoint, "flush_to_disk", 9),
             "pruning": (checkpoint, "_prune", 2)}[place]  # fmt: skip
    at_call(monkeypatch, *where, lambda: kill(signal.SIGTERM))
    assert exit_code(shard_folder, tmp_path / "run") == 128 + signal.SIGTERM
    assert_stopped_whole_and_goes_on(shard_folder, tmp_path / "run", whole, 2, capsys, "SIGTERM")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_wait_for_data_at_once(shard_folder, tmp_path, whole, monkeypatch, capsys, number):
    """A read that would take ten minutes, in the middle of the 4th batch."""
    patience, read, reads = threading.Timer(0, lambda: None), ShardSet.read, []

    def blocking(self, i):
        reads.append(i)
        if len(read_log(tmp_path / "run")) == 3:
            nonlocal patience
            patience = threading.Timer(0.2, lambda: kill(number))
            patience.start()
            time.sleep(600)
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(ShardSet, "read", blocking)
        assert exit_code(shard_folder, tmp_path / "run") == 128 + number
    patience.join()
    assert_stopped_whole_and_goes_on(shard_folder, tmp_path / "run", whole, 3, capsys, number.name)


def test_a_wait_for_workers_that_hang_is_ended_too(shard_folder, tmp_path, whole, capsys):
    """Data workers are deaf to SIGTERM, and these are in a read of ten minutes: they must not keep the process."""
    run = tmp_path / "run"
    options = {**EVENTS, "workers": 2, "sample_every": 1000, "ckpt_every": 1000}
    process = launch(shard_folder, run, script=WORKER, fault="hanging_reads:0:3", **options)
    wait_for(lambda: len(read_log(run)) == 3 and (run / "hanging").exists(), process)
    process.send_signal(signal.SIGTERM)
    said = finish(process, timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said[-2000:]
    newest, _ = checkpoint.newest_valid(run)
    assert newest.name == "ckpt_0000003" and "stopped by SIGTERM at step 3" in said.splitlines()[-1]


def test_the_stop_file_ends_the_run_once(shard_folder, tmp_path, whole, monkeypatch, capsys):
    """Looked for every other second, here at once; gone afterwards, so the next start is not stopped by it."""
    run, now = tmp_path / "run", iter(range(0, 10**6, 3))
    at_call(monkeypatch, Trainer, "generator_loss", 3, (run / STOP_FILE).touch)
    with monkeypatch.context() as patch:
        patch.setattr("toolkit.launching.stopping.time", type("Clock", (), {"monotonic": lambda: next(now)}))
        assert exit_code(shard_folder, run) == 75
    assert not (run / STOP_FILE).exists()
    assert_stopped_whole_and_goes_on(shard_folder, run, whole, 3, capsys, "the stop file")


def test_a_second_ctrl_c_ends_at_once_and_leaves_the_checkpoints_whole(shard_folder, tmp_path, whole, monkeypatch):
    """The second one while the first one's checkpoint is being written."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "generator_loss", 3, lambda: kill(signal.SIGINT))
        at_call(patch, checkpoint, "flush_to_disk", 17, lambda: kill(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            exit_code(shard_folder, run)
    assert [path.name for path in checkpoint.checkpoints(run)] == ["ckpt_0000000", "ckpt_0000002"]
    assert [find_problem(path) for path in checkpoint.checkpoints(run)] == ["", ""] and list(run.glob(".tmp-*"))
    assert exit_code(shard_folder, run) == 0 and not list(run.glob(".tmp-*"))
    assert_equal_runs(whole, run, 6)


def test_sigterm_twice_is_sigterm_once(shard_folder, tmp_path, whole, monkeypatch, capsys):
    """Launchers and schedulers repeat it; only a second Ctrl-C is impatience."""
    for call in (3, 4):
        at_call(monkeypatch, checkpoint, "flush_to_disk", 9 + call, lambda: kill(signal.SIGTERM))
    assert exit_code(shard_folder, tmp_path / "run") == 128 + signal.SIGTERM
    assert_stopped_whole_and_goes_on(shard_folder, tmp_path / "run", whole, 2, capsys, "SIGTERM")


LAUNCHERS = {
    "accelerate": {"launcher": ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")},
    "torchrun": {"processes": 2, "script": "toolkit.train"},
}


@pytest.mark.dist
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher_alone_reaches_the_run(shard_folder, tmp_path, launcher):
    """torchrun passes SIGTERM on; `accelerate launch` dies of it, and the run ends with it instead of living on.

    Started as users do: one a path, the other the module with two processes, each of which has half of every batch.
    """
    run = tmp_path / "run"
    process = launch(shard_folder, run, new_python=True, iters=100_000, **LAUNCHERS[launcher])
    wait_for(lambda: len(read_log(run)) >= 3, process)
    process.send_signal(signal.SIGTERM)
    said = finish(process)  # the pipe closes when the last process of the run has gone
    assert process.returncode != 0
    newest, _ = checkpoint.newest_valid(run)
    step = int(newest.name[5:])
    assert step >= 3 and f"stopped by SIGTERM at step {step:,}, saved {newest}" in said
    assert (read_log(run)[-1]["step"], read_log(run)[-1]["images_seen"]) == (step, 8 * step)
    assert said.count("stopped by") == 1 and f"micro-batches of {8 if launcher == 'accelerate' else 4}" in said
