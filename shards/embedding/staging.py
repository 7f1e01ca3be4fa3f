"""Files of several processes that meet in one folder: each appears whole, whoever writes it, and again does no harm."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from toolkit.durable import flush_to_disk

STAGING_NAME, LOCK_NAME = ".embedding", "lock"


class Staging:
    """A folder inside `folder` for what is not finished: no leftover of a killed process lies anywhere else.

    Every process that writes holds a shared lock on it. Only the last one to finish removes it: one that is done must
    not take the folder away from one that is still at work.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STAGING_NAME
        self._lock: BinaryIO | None = None

    @contextmanager
    def write(self, path: Path) -> Iterator[BinaryIO]:
        """A file that takes the name `path` when the block ends, flushed, or vanishes if it fails.

        Two processes may write one `path` at once, if with the same bytes. Raises OSError.
        """
        self._enter()
        # A name of its own: two containers may have one host name and equal process numbers.
        staged = self.path / f"{uuid.uuid4().hex}.tmp"
        try:
            with staged.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            if [found.name for found in self.path.iterdir()] == [LOCK_NAME]:  # else finished units stay
                self._leave()
            raise

    def write_bytes(self, path: Path, data: bytes) -> None:
        with self.write(path) as file:
            file.write(data)

    def remove(self) -> None:
        """At the end, when every result has its name. The folder goes with the last process that is at work in it."""
        flush_to_disk(self.path.parent)
        self._leave()

    def _enter(self) -> None:
        """Take part: from now on no other process removes the folder."""
        while self._lock is None:
            with suppress(FileNotFoundError, FileExistsError):  # removed just now by the last of the others
                self.path.mkdir(parents=True, exist_ok=True)
                lock = (self.path / LOCK_NAME).open("ab")
                fcntl.flock(lock, fcntl.LOCK_SH)
                if self._is_there(lock):
                    self._lock = lock
                else:
                    lock.close()

    def _leave(self) -> None:
        """Take part no longer, and remove the folder if nobody else does."""
        if self._lock is None:  # nothing was written here, but a killed process may have left something
            if not self.path.is_dir():
                return
            self._enter()
        assert self._lock is not None
        with suppress(OSError):  # somebody else is at work
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def _is_there(self, lock: BinaryIO) -> bool:
        """Whether the lock is that of the folder as it is now."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock.fileno()), (self.path / LOCK_NAME).stat())
        return False
