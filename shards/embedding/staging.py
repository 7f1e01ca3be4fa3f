"""Files of several processes that meet in one folder: each appears whole, whoever writes it, and again does no harm."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from toolkit.durable import flush_to_disk

STAGING_NAME = ".embedding"


class Staging:
    """A folder inside `folder` for what is not finished: no leftover of a killed process lies anywhere else."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STAGING_NAME

    @contextmanager
    def write(self, path: Path) -> Iterator[BinaryIO]:
        """A file that takes the name `path` when the block ends, flushed, or vanishes if it fails.

        Two processes may write one `path` at once, if with the same bytes; toolkit.durable would let them share a
        staged file.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        staged = self.path / f"{socket.gethostname()}-{os.getpid()}.tmp"
        try:
            with staged.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            with suppress(OSError):  # finished units stay
                self.path.rmdir()
            raise

    def write_bytes(self, path: Path, data: bytes) -> None:
        with self.write(path) as file:
            file.write(data)

    def remove(self) -> None:
        """At the end, when every result has its name."""
        flush_to_disk(self.path.parent)
        shutil.rmtree(self.path, ignore_errors=True)
