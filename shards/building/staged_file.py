"""One file that several processes may be writing at the same time: it is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def staged_file(path: Path, first_counts: bool = False) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its name at the end of the block, flushed to disk.

    `first_counts`: if by then there is a `path`, it stays. The staged name is random, because processes of several
    machines, or containers, have equal numbers.
    """
    staged = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with staged.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not first_counts or not _link(staged, path):
            staged.replace(path)
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _link(staged: Path, path: Path) -> bool:
    """Give `path` its name unless it has one; False on a file system without hard links."""
    try:
        os.link(staged, path)  # fails where one is, as a rename would not
    except FileExistsError:
        return True
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
