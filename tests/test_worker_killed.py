"""kill -9 a data worker: one line, exit code 1 and the last checkpoint, not a traceback nor a wait without end."""

import itertools
import json
import multiprocessing.connection
import os
import signal
import threading
from pathlib import Path

import pytest
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.running import finish, launch, newest_step, train, wait_for
from toolkit.data.dataset import ShardDataset, batches
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.run_folder import checkpoint


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def await_death(child: int) -> None:
    """Until it is dead and SIGCHLD has come; it stays there to be asked for its exit code."""
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def stream_of(shard_folder: Path, workers: int = 2):
    return batches(ShardDataset(ShardSet(shard_folder), seed=0), 0, 8, slice(0, 8), 1, workers)


LINE = r"data worker \d+ was killed \(signal 9\), most likely by the system for want of memory; lower --workers"


@pytest.mark.parametrize("which", [0, 1])
def test_between_two_batches(shard_folder, which):
    """Nothing is raised where the main process is at that moment; the next batch is refused."""
    before = children(os.getpid())
    stream = stream_of(shard_folder)
    next(stream)
    workers = [child for child in children(os.getpid()) if child not in before]
    assert len(workers) == 2
    os.kill(workers[which], signal.SIGKILL)
    await_death(workers[which])
    with pytest.raises(UserError, match=LINE) as told:
        next(stream)  # although there are batches in stock
    assert "\n" not in str(told.value)
    assert not set(workers) & set(children(os.getpid()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_while_the_batch_is_awaited(shard_folder, monkeypatch, number):
    """A worker that dies in the middle of a read, as one does for want of memory."""
    read, main = ShardSet.read, os.getpid()

    def dying(self, i):
        if os.getpid() != main and i == 7:
            os.kill(os.getpid(), number)
        return read(self, i)

    monkeypatch.setattr(ShardSet, "read", dying)
    with pytest.raises(UserError, match=rf"data worker \d+ was killed \(signal {number.value}\)"):
        list(itertools.islice(stream_of(shard_folder), 30))


def test_a_pipe_that_breaks_before_the_process_is_dead(shard_folder, monkeypatch):
    """The signal of its death comes while that is waited for."""
    before = children(os.getpid())
    stream = stream_of(shard_folder)
    next(stream)
    doomed = [max(set(children(os.getpid())) - set(before))]
    wait = multiprocessing.connection.wait

    def broken(self):
        raise EOFError

    def dying(sentinels, timeout=None):
        if doomed:
            os.kill(doomed[0], signal.SIGKILL)
            await_death(doomed.pop())
        return wait(sentinels, timeout)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    monkeypatch.setattr(multiprocessing.connection, "wait", dying)
    with pytest.raises(UserError, match=LINE):
        next(stream)


def test_a_process_whose_files_are_closed_and_that_is_not_dead_yet(shard_folder, monkeypatch):
    """The system closes a killed process's pipes first: for a moment they say that it ended and it counts as alive."""
    before = children(os.getpid())
    stream = stream_of(shard_folder, workers=1)
    next(stream)
    doomed = list(set(children(os.getpid())) - set(before))
    assert len(doomed) == 1
    wait = multiprocessing.connection.wait

    def broken(self):
        raise EOFError

    def closed(sentinels, timeout=None):
        if not doomed:
            return wait(sentinels, timeout)
        threading.Timer(0.3, os.kill, (doomed.pop(), signal.SIGKILL)).start()
        return list(sentinels)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    monkeypatch.setattr(multiprocessing.connection, "wait", closed)
    with pytest.raises(UserError, match=LINE):
        next(stream)


def test_a_worker_that_exits(shard_folder, monkeypatch):
    read, main = ShardSet.read, os.getpid()
    monkeypatch.setattr(ShardSet, "read", lambda self, i: os._exit(9) if os.getpid() != main else read(self, i))
    with pytest.raises(UserError, match=r"ended by itself \(exit code 9\); lower --workers"):
        next(stream_of(shard_folder))


def test_closing_after_a_death_takes_no_worker_along(shard_folder):
    before = set(children(os.getpid()))
    stream = stream_of(shard_folder)
    next(stream)
    os.kill(max(set(children(os.getpid())) - before), signal.SIGKILL)
    stream.close()
    assert set(children(os.getpid())) <= before
    assert len(list(itertools.islice(stream_of(shard_folder), 3))) == 3  # and the next stream knows nothing of it


def test_a_running_training(shard_folder, tmp_path):
    run = tmp_path / "run"
    process = launch(shard_folder, run, workers=2, iters=100_000, ckpt_every=5)
    wait_for(lambda: newest_step(run) >= 10, process)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    said = finish(process)
    last = said.strip().splitlines()[-1]
    assert process.returncode == 1 and f"data worker {workers[0]} was killed (signal 9)" in last, said[-2000:]
    assert "for want of memory" in last and last.startswith("train: ") and "Traceback" not in said
    assert not Path(f"/proc/{workers[1]}").exists()
    newest, passed_over = checkpoint.newest_valid(run)
    assert newest is not None and not passed_over and int(newest.name[5:]) >= 10
    train(shard_folder, run, iters=int(newest.name[5:]) + 1)


def process_of_rank(rank: int, run: Path) -> int:
    """Of a training by several processes."""
    return json.loads((run / "heartbeats" / f"process_{rank}.json").read_text())["pid"]


@pytest.mark.dist
def test_of_one_of_two_processes(shard_folder, tmp_path):
    """The one tells what happened to it, the other that it has lost it; both end, and the checkpoint is whole."""
    run, options = tmp_path / "run", {"workers": 1, "resident": "false", "iters": 100_000, "ckpt_every": 5}
    process = launch(shard_folder, run, processes=2, timeout=120, **options)
    wait_for(lambda: newest_step(run) >= 10, process)
    ranks = [process_of_rank(rank, run) for rank in (0, 1)]
    (worker,) = children(ranks[1])
    os.kill(worker, signal.SIGKILL)
    said = finish(process)
    assert process.returncode != 0
    assert f"train (process 1): data worker {worker} was killed (signal 9)" in said, said[-3000:]
    assert "train: process 0 lost contact with another at step" in said, said[-3000:]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    newest, passed_over = checkpoint.newest_valid(run)
    assert newest is not None and not passed_over and int(newest.name[5:]) >= 10
