"""Several processes, machines as far as they can tell, build one folder: the same bytes as one alone."""

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shards.building.folders import Folders
from shards.building.workers import _held, choose_workers
from tests.builds import beside, build, contents, paint, run, start
from tests.forking import Forked
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError

KILLS = int(os.environ.get("TOOLKIT_TEST_KILLS", "5"))
"""Of the real command, where it is killed at random moments."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 images, two of them bad: 5 parts."""
    paint(tmp_path / "in", range(23))
    for number in (7, 22):
        (tmp_path / "in" / f"{number:03d}.png").write_text("text")
    return tmp_path / "in"


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> dict[str, bytes]:
    return contents(build(folder, tmp_path / "whole").folder)


@pytest.mark.dist
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_no_byte(folder: Path, tmp_path: Path, whole: dict, workers: int) -> None:
    said = told(start(folder, tmp_path / "out", f"--workers={workers}", new_python=workers == 2)).splitlines()
    assert contents(tmp_path / "out") == whole and not beside(tmp_path / "out")
    assert sum(line.startswith("skipped 0") for line in said) == 2


def told(process: subprocess.Popen | Forked) -> str:
    """Both outputs of a command that must succeed; images left out are named on stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{out[-1000:]}{err[-3000:]}"
    assert all(line.startswith("skipped ") for line in err.splitlines()), err
    return out + err


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_shares_one_after_the_other(folder: Path, tmp_path: Path, whole: dict, order: tuple, capsys) -> None:
    out = tmp_path / "out"
    for share in order[:-1]:
        run(folder, out, share=f"{share}/4")
        assert not out.exists() and "are with other processes" in capsys.readouterr().out
    run(folder, out, share=f"{order[-1]}/4")
    assert contents(out) == whole and not beside(out)


def test_a_late_share_changes_nothing(folder: Path, tmp_path: Path, whole: dict) -> None:
    """Not even where bad images make it try again."""
    out = tmp_path / "out"
    for share in (0, 1, 2, 3):
        run(folder, out, share=f"{share}/4")
    before = out.stat().st_ino
    for share in (2, 3, 0):
        run(folder, out, share=f"{share}/4")
        assert (contents(out), out.stat().st_ino, beside(out)) == (whole, before, [])


@pytest.mark.dist
@pytest.mark.parametrize("count", [4, 7])
def test_shares_at_once(folder: Path, tmp_path: Path, whole: dict, count: int) -> None:
    """7 processes for 5 parts: those without work take nothing away from the others."""
    out = tmp_path / "out"
    flags = ["--workers=1"]
    processes = [start(folder, out, *flags, f"--share={share}/{count}") for share in range(count - 1)]
    processes.append(start(folder, out, *flags, RANK=str(count - 1), WORLD_SIZE=str(count)))
    said = [told(process) for process in processes]
    assert sum("wrote 21 samples" in text for text in said) == 1
    assert contents(out) == whole and not beside(out)


@pytest.mark.dist
def test_two_identical_commands_at_once(folder: Path, tmp_path: Path, whole: dict) -> None:
    for process in [start(folder, tmp_path / "out", "--workers=1") for _ in range(2)]:
        told(process)
    assert contents(tmp_path / "out") == whole and not beside(tmp_path / "out")


def test_a_process_without_work_leaves_the_folder_to_those_at_work(tmp_path: Path) -> None:
    at_work = Folders(tmp_path / "out")
    at_work.start()
    for last in ("folders.join(); folders.leave()", "folders.start_anew()"):
        other = tmp_path / "other.py"
        other.write_text(
            "import pathlib, sys; from shards.building.folders import Folders\n"
            f"folders = Folders(pathlib.Path(sys.argv[1])); {last}"
        )
        _, said = Forked([str(other), str(at_work.out)], tmp_path, dict(os.environ)).communicate()
        assert at_work.building.is_dir()
    assert "another process is at work in" in said
    at_work.leave()
    assert not beside(tmp_path / "out")


def running(group: int) -> list[int]:
    """Processes of a group that are neither ended nor waiting for their parent to notice."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def ends(group: int) -> bool:
    """Workers notice within a second that their parent is gone; Python's own helper of a pool a moment after it."""
    deadline = time.monotonic() + 60
    while running(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left := running(group):
        os.killpg(group, signal.SIGKILL)
    return not left


def wait_for(pattern: str, folder: Path, process: subprocess.Popen | Forked, count: int = 1) -> None:
    """Until there are `count` such files, or the process has ended."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.dist
@pytest.mark.parametrize(
    "kills,awaited,most", [(1, "shard-*.json", 0.0), pytest.param(KILLS, "*.json", 0.3, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments(tmp_path: Path, kills: int, awaited: str, most: float) -> None:
    """The same command each time, with two workers; a last one ends where an uninterrupted one does."""
    folder, moments, out = paint(tmp_path / "in", range(200)), random.Random(5), tmp_path / "out"
    whole = contents(build(folder, tmp_path / "whole").folder)
    begun = 0
    for _ in range(kills + 20):
        process, before = start(folder, out, "--workers=2"), len(list(tmp_path.glob(f".out.building/{awaited}")))
        wait_for(f".out.building/{awaited}", tmp_path, process, before + 1)
        time.sleep(moments.uniform(0, most))
        process.kill()
        assert ends(process.pid), "workers outlive the command"
        process.communicate(timeout=300)
        begun += process.returncode == -signal.SIGKILL
        if begun == kills:
            break
        if out.exists():  # on a busy machine all was done before this process came to kill
            assert contents(out) == whole
            shutil.rmtree(out)
    assert begun, "the kills fell behind the end: nothing was tested"
    build(folder, out)
    assert contents(out) == whole and not beside(out)


@pytest.mark.dist
@pytest.mark.parametrize("sent,code,line", [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "create: interrupted\n")])
def test_signals_end_it_in_order(tmp_path: Path, sent: int, code: int, line: str) -> None:
    """To the whole group, as a terminal and SLURM send them, while workers start and while they work."""
    folder, out = paint(tmp_path / "in", range(400)), tmp_path / "out"
    for awaited in ("plan.jsonl", "shard-*.json"):
        for _ in range(20):
            process = start(folder, out, "--workers=2", new_python=sent == signal.SIGINT)
            wait_for(f".out.building/{awaited}", tmp_path, process)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
            _, err = process.communicate(timeout=300)
            if not out.exists():
                break
            shutil.rmtree(out)  # on a busy machine all was done before this process came to send
        assert (process.returncode, err) == (code, line)
        assert not out.exists() and ends(process.pid)
    build(folder, out)
    assert len(contents(out)) == 80 + 4 and not beside(out)


def test_a_held_signal_waits_though_another_thread_receives_it() -> None:
    """Else a Ctrl-C between the start of a worker and what it is told would make that worker print a traceback."""
    over, reached = threading.Event(), False
    other = threading.Thread(target=over.wait)
    other.start()
    received, told = socket.socketpair()  # Python writes to it in the thread that receives the signal
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno())
    try:
        with pytest.raises(KeyboardInterrupt), _held(signal.SIGINT):
            signal.pthread_kill(other.ident, signal.SIGINT)
            assert received.recv(1) == bytes([signal.SIGINT])
            reached = True
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        other.join()
        received.close()
        told.close()
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("asked,samples,parts,expected", [
    (0, 0, 0, 1), (0, 1, 1, 1), (0, 10**6, 1, 1), (3, 10, 0, 1), (3, 10, 2, 2), (3, 10, 100, 3), (1, 10**6, 100, 1),
])  # fmt: skip
def test_never_more_workers_than_parts_and_never_none(asked: int, samples: int, parts: int, expected: int) -> None:
    assert choose_workers(asked, samples, parts) == expected


def test_an_unfinished_build_with_all_parts_done_is_put_together(folder, tmp_path, whole, monkeypatch) -> None:
    """No part is left, so no worker is needed."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space.*finished parts stay in"):
        patch.setattr(Folders, "_replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        build(folder, out, workers=0)
    build(folder, out, workers=0)
    assert contents(out) == whole and not beside(out)


@pytest.mark.parametrize("changed", [{"samples_per_shard": 4}, {"limit": 3}, {"size": 32}, {"encoder_weights": "w"}])
def test_an_unfinished_build_goes_on_with_its_own_options_alone(folder, tmp_path, monkeypatch, changed) -> None:
    out, name = tmp_path / "out", next(iter(changed))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="finished parts stay"):
        patch.setattr(Folders, "_replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        build(folder, out)
    changed = {key: Path(value) if key == "encoder_weights" else value for key, value in changed.items()}
    with pytest.raises(UserError, match=f"unfinished build in .* was begun with --{name} .*--overwrite"):
        build(folder, out, **changed)
    changed.pop("encoder_weights", None)
    assert len(build(folder, out, overwrite=True, **changed)) == changed.get("limit", 21) and not beside(out)


def test_an_unfinished_build_goes_on_with_its_own_encoder_alone(folder, tmp_path, monkeypatch) -> None:
    """Of the same name, but with other weights."""
    with monkeypatch.context() as patch, pytest.raises(UserError, match="finished parts stay"):
        patch.setattr(Folders, "_replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        build(folder, tmp_path / "out")
    real = HashingEncoder.encode
    monkeypatch.setattr(HashingEncoder, "encode", lambda self, captions: real(self, captions).flip(1))
    with pytest.raises(UserError, match="unfinished build in .* was begun with another encoder: .* cosine"):
        build(folder, tmp_path / "out")
