"""A sign of life per process: RUN/heartbeats/process_K.json. Says who was where when a run hangs or dies."""

import contextlib
import json
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

FOLDER = "heartbeats"
EVERY = 1.0
"""Seconds between two writes at least."""


class Heartbeat:
    """Written by every process; a disk that refuses it does not matter."""

    def __init__(self, run: Path, index: int) -> None:
        self._path = run / FOLDER / f"process_{index}.json"
        self._about = {"process": index, "host": socket.gethostname(), "pid": os.getpid()}
        self._next = 0.0

    def beat(self, step: int) -> None:
        """`step` steps are done."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                staged = self._path.with_suffix(".tmp")  # not flushed: once a second that would slow down a slow disk
                staged.write_text(json.dumps(self._about | {"step": step, "time": time.time()}), encoding="utf-8")
                staged.replace(self._path)


class Watchdog:
    """Ends this process when it has waited for the others for `timeout` seconds, and says which of them are silent.

    A thread of its own: while the main one waits for a GPU that waits for another process, nothing else can.
    """

    def __init__(self, run: Path, index: int, timeout: float, needed: bool) -> None:
        self._run, self._index, self._timeout = run, index, timeout
        self._last, self._done = time.monotonic(), threading.Event()
        if needed:
            threading.Thread(target=self._watch, daemon=True).start()

    def feed(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(1):
            if time.monotonic() - self._last > self._timeout + 5:  # an exchange on the CPU gives up first
                who = "; ".join(silent(self._run, self._index, self._timeout / 2)) or "the others give signs of life"
                told = f"train (process {self._index}): no step for {self._timeout:.0f} s (--timeout): {who}"
                print(told, file=sys.stderr, flush=True)
                os._exit(1)


def silent(run: Path, index: int, longer_than: float) -> list[str]:
    """Which other processes have given no sign for so many seconds, and where they were."""
    found = []
    for path in sorted((run / FOLDER).glob("process_*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            about = json.loads(path.read_text(encoding="utf-8"))
            age = time.time() - about["time"]
            if about["process"] != index and age > longer_than:
                found.append(
                    f"process {about['process']} (pid {about['pid']} on {about['host']}) gave its last sign of life "
                    f"{age:.0f} s ago at step {about['step']:,}"
                )
    return found


def remove(run: Path) -> None:
    """After a run that ended as it should."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
