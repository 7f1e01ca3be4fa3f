"""A sign of life per process: RUN/heartbeats/process_K.json. Says who was where when a run hangs or dies."""

import contextlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

from toolkit.durable import write_whole

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
                write_whole(self._path, json.dumps(self._about | {"step": step, "time": time.time()}).encode())


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
