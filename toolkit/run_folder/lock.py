"""One run at a time in a run folder."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from toolkit.errors import UserError

LOCK_NAME = ".lock"


class RunLock:
    """A POSIX record lock on RUN/.lock, held until the process ends, however it ends: nothing is ever stale.

    Not flock(): data workers would inherit that one and hold it beyond a killed trainer.
    """

    def __init__(self, run: Path, patience: float = 20.0) -> None:
        """Creates the folder. Waits up to `patience` seconds for a run that is just ending. Raises UserError."""
        path = run / LOCK_NAME
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"out_dir {run} is not writable ({error.strerror}); choose another --out_dir") from None
        deadline = time.monotonic() + patience
        while not _lock(self._file):
            if time.monotonic() >= deadline:
                raise UserError(
                    f"out_dir {run} is in use by {self._holder()}; stop that run or choose another --out_dir"
                )
            time.sleep(0.5)
        about = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.ctime()})
        try:
            self._file.truncate(0)
            os.write(self._file.fileno(), about.encode())  # nothing stays buffered, which would fail again on closing
        except OSError as error:
            raise UserError(f"out_dir {run} is not writable ({error.strerror}); choose another --out_dir") from None

    def _holder(self) -> str:
        self._file.seek(0)
        try:
            about = json.loads(self._file.read())
            return f"another run (process {about['pid']} on {about['host']}, since {about['since']})"
        except (ValueError, KeyError, TypeError):
            return "another run"

    def release(self) -> None:
        self._file.close()


def in_use(run: Path) -> bool:
    """Whether another process holds the folder's lock. Asking changes nothing; the holder itself must not ask."""
    path = run / LOCK_NAME
    if not path.is_file():
        return False
    with path.open("r+b") as file:
        return not _lock(file)


def _lock(file: IO) -> bool:
    """Take the lock if it is free, without waiting; False if another process holds it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: better unlocked than not at all
        return True
    return True
