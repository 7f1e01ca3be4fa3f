"""Who is at work in a folder: locks that end with their process, however it ends."""

import fcntl
import os
from pathlib import Path

LOCK_NAME = "lock"
WORKING, LEADING = 0, 1
"""Bytes of the lock file: all at work share the first, one at a time may have the second."""


class Presence:
    """This process's place among those at work in a folder. POSIX record locks, so also on network disks.

    On a file system without locks every process takes itself for the only one.
    """

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError if the folder is not there."""
        self._path = folder / LOCK_NAME
        while True:
            self._file = self._path.open("a+b")
            self._lock(WORKING, fcntl.LOCK_SH)
            if self.is_current:
                return
            self._file.close()  # somebody took the folder away between the two calls

    @property
    def is_current(self) -> bool:
        """Whether the folder is still that in which this process began."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def is_alone(self) -> bool:
        """Ends this process's own work: of several that ask, the last one is told so."""
        self._lock(WORKING, fcntl.LOCK_UN)  # first: two that both waited for the other would both go away
        return self._lock(WORKING, fcntl.LOCK_EX | fcntl.LOCK_NB) and self.is_current

    def take_lead(self) -> bool:
        """False if another process has it."""
        return self._lock(LEADING, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def give_up_lead(self) -> None:
        if not self._file.closed:
            self._lock(LEADING, fcntl.LOCK_UN)

    def close(self) -> None:
        self._file.close()

    def _lock(self, byte: int, kind: int) -> bool:
        try:
            fcntl.lockf(self._file, kind, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return True
        return True
