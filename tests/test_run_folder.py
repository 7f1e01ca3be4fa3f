"""The run folder: one run at a time, refused before the first step if unusable, never without a whole checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.running import finish, launch, logged, train
from tests.test_checkpoint import snapshot
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.health.score import Scoring
from toolkit.run_folder import checkpoint
from toolkit.run_folder.lock import RunLock
from toolkit.training.trainer import Trainer

HOLDER = """
import os, sys, time
from pathlib import Path
from toolkit.errors import UserError
from toolkit.run_folder.lock import RunLock
try:
    lock = RunLock(Path(sys.argv[1]), patience=0)
except UserError as error:
    sys.exit(str(error))
if "hold" in sys.argv:
    if os.fork():
        print("held", flush=True)
    time.sleep(600)
"""


def another_process(run: Path, *arguments: str) -> subprocess.Popen:
    """Takes the lock on `run`, or ends with what it was told. 'hold': keeps it, with a child like a data worker."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run), *arguments], cwd=REPOSITORY, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def refusal(run: Path) -> str:
    """What another process is told that wants to run there; '' if it may."""
    return another_process(run).communicate(timeout=60)[1].strip()


@pytest.fixture
def holder(tmp_path):
    process = another_process(tmp_path, "hold")
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_second_run_is_refused_with_process_and_host_of_the_first(shard_folder, tmp_path, holder, monkeypatch):
    monkeypatch.setattr(RunLock.__init__, "__defaults__", (0.0,))
    with pytest.raises(UserError, match=f"is in use by .*process {holder.pid} on {socket.gethostname()}, since"):
        train(shard_folder, tmp_path, iters=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_after_kill_9_the_next_run_starts_at_once_though_a_data_worker_lives_on(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    RunLock(tmp_path, patience=0).release()


def test_a_second_run_waits_for_one_that_is_just_ending(tmp_path, holder):
    ending = threading.Timer(0.3, os.kill, (holder.pid, signal.SIGKILL))
    ending.start()
    try:
        RunLock(tmp_path, patience=60).release()
    finally:
        ending.join()


def test_the_lock_is_held_from_before_the_first_step_to_the_end(shard_folder, tmp_path, monkeypatch):
    step, told = Trainer.step, []

    def asking(trainer):
        told.append(refusal(tmp_path))
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", asking)
    train(shard_folder, tmp_path, iters=2, ckpt_every=1)
    assert len(told) == 2 and all(f"in use by another run (process {os.getpid()}" in line for line in told)
    assert refusal(tmp_path) == ""


@pytest.mark.parametrize("content", [b"", b"\xff{half a line", b"[]", b'{"pid": 1}'])
def test_a_damaged_lock_file_changes_nothing(tmp_path, content):
    """It is the lock of the system that counts, not what the file says."""
    (tmp_path / ".lock").write_bytes(content)
    lock = RunLock(tmp_path, patience=0)
    assert f"another run (process {os.getpid()} on {socket.gethostname()}, since" in refusal(tmp_path)
    lock.release()
    assert refusal(tmp_path) == ""
    assert len((tmp_path / ".lock").read_text().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\xff{half a line", b"[]", b'{"pid": 1}'])
def test_a_lock_whose_file_was_damaged_is_still_held(tmp_path, holder, content):
    (tmp_path / ".lock").write_bytes(content)
    with pytest.raises(UserError, match="is in use by another run; stop that run"):
        RunLock(tmp_path, patience=0)


@pytest.fixture
def read_only(tmp_path):
    """A folder nothing can be created in: by its mode, or for root, whom modes do not stop, by its immutable flag."""
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    flagged = False
    if os.geteuid() == 0:
        flagged = not subprocess.run(["chattr", "+i", folder], capture_output=True).returncode
    try:
        (folder / "probe").touch()
        pytest.skip("this user may write anywhere")
    except OSError:
        yield folder
    finally:
        if flagged:
            subprocess.run(["chattr", "-i", folder], check=True)
        folder.chmod(0o755)


def refused(shard_folder, out_dir: Path) -> None:
    with pytest.raises(UserError, match="is not writable .*; choose another --out_dir") as error:
        train(shard_folder, out_dir, iters=1)
    assert f"out_dir {out_dir}" in str(error.value) and "\n" not in str(error.value)


def test_a_read_only_folder_is_refused_before_the_first_step(shard_folder, read_only):
    refused(shard_folder, read_only)
    refused(shard_folder, read_only / "run")
    assert not list(read_only.iterdir())


def test_a_file_or_a_link_to_nowhere_is_no_run_folder(shard_folder, tmp_path):
    file, link, loop = tmp_path / "file", tmp_path / "link", tmp_path / "loop"
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere" / "at all")
    loop.symlink_to(loop)
    for out_dir in (file, file / "run", link, loop, loop / "run", tmp_path / ("x" * 300)):
        refused(shard_folder, out_dir)
    assert file.read_text() == "mine" and sorted(tmp_path.iterdir()) == [file, link, loop]


def test_missing_parents_are_made_and_a_link_to_a_folder_is_followed(shard_folder, tmp_path):
    link, real = tmp_path / "link", tmp_path / "a" / "b" / "c"
    train(shard_folder, real, iters=1)
    link.symlink_to(real)
    train(shard_folder, link, iters=2)
    assert len(logged(real)) == 2 and link.is_symlink()


@pytest.mark.dist
def test_two_processes_end_together_when_the_folder_is_refused(shard_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    process = launch(shard_folder, tmp_path / "file" / "run", "--iters", "1", processes=2)
    said = finish(process, timeout=120)
    assert process.returncode == 1 and 'Traceback (most recent call last):\n  File "' + str(REPOSITORY) not in said
    lines = [line for line in said.splitlines() if line.startswith("train")]
    assert sum("is not writable" in line for line in lines) == 1
    assert sum(line.startswith("train (process 1): stopped, because the main process") for line in lines) == 1, said


def test_no_moment_is_without_a_whole_checkpoint(tmp_path):
    """A watcher looks all the while; and it looks in the middle of every rename and deletion."""
    checkpoint.save(tmp_path, snapshot(1), keep=2)
    looks, without, done = [], [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            before = checkpoint.checkpoints(tmp_path)
            newest, passed_over = checkpoint.newest_valid(tmp_path)
            if newest is None and before == checkpoint.checkpoints(tmp_path):
                without.append(passed_over)
            looks.append(newest)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for step in range(2, 40):
            checkpoint.save(tmp_path, snapshot(step), keep=2)
    finally:
        done.set()
        watcher.join()
    assert not without and len(set(looks)) > 10
    assert [int(path.name[5:]) for path in checkpoint.checkpoints(tmp_path)] == [38, 39]


@pytest.mark.parametrize("keep", [2, 3])
def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path, monkeypatch, keep):
    """At every rename and deletion, `keep` whole checkpoints (or all there ever were) are in place."""
    saved, seen = 0, []

    def whole() -> int:
        return sum(not checkpoint.find_problem(folder) for folder in checkpoint.checkpoints(tmp_path))

    def looking(real):
        def call(*arguments, **named):
            seen.append((saved, whole()))
            result = real(*arguments, **named)
            seen.append((saved, whole()))
            return result

        return call

    monkeypatch.setattr(Path, "rename", looking(Path.rename))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", looking(checkpoint.shutil.rmtree))
    for step in range(1, 7):
        checkpoint.save(tmp_path, snapshot(step), keep)
        saved = step
    assert all(present >= min(before, keep) for before, present in seen) and len(seen) > 30


def test_the_best_checkpoint_is_never_pruned_also_after_a_resume(shard_folder, tmp_path, monkeypatch):
    scores = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.6, 6: 0.5, 7: 0.4, 8: 0.05, 9: 0.3, 10: 0.3, 11: 0.3}
    scoring = Scoring("swd", score=lambda trainer: scores[trainer.step_number])
    monkeypatch.setattr("toolkit.train.choose_scoring", lambda config, shards, processes: scoring)
    options = {"ckpt_every": 1, "keep": 2, "score": "swd"}
    for iters, kept in ((5, [2, 4, 5]), (7, [2, 6, 7]), (11, [8, 10, 11])):
        train(shard_folder, tmp_path, iters=iters, **options)
        assert [int(path.name[5:]) for path in checkpoint.checkpoints(tmp_path)] == kept
        assert not any(map(checkpoint.find_problem, checkpoint.checkpoints(tmp_path)))


def test_keeping_a_single_checkpoint_is_refused():
    with pytest.raises(UserError, match="keep is 1; it must be at least 2"):
        ResolvedConfig(keep=1)
    with pytest.raises(UserError, match="keep is -1"):
        ResolvedConfig(keep=-1)
    assert ResolvedConfig(keep=0).keep == 0 and ResolvedConfig(keep=2).keep == 2


def test_what_a_kill_left_is_put_right_when_the_next_run_starts(shard_folder, tmp_path):
    train(shard_folder, tmp_path, iters=2, ckpt_every=1)
    (tmp_path / "ckpt_0000002").rename(tmp_path / ".old-ckpt_0000002")
    (tmp_path / ".tmp-ckpt_0000003").mkdir()
    (tmp_path / "stop").touch()
    (tmp_path / "heartbeats").mkdir()
    train(shard_folder, tmp_path, iters=3)
    assert len(logged(tmp_path)) == 3  # resumed from the one set aside; no stop
    names = {path.name for path in tmp_path.iterdir()}
    assert "ckpt_0000002" in names and not names & {".old-ckpt_0000002", ".tmp-ckpt_0000003", "stop", "heartbeats"}
