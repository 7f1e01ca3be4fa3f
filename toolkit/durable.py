"""Files that are there whole or not at all, and what tells that they still are."""

import errno
import hashlib
import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, flush and rename: a reader, a kill or a power cut never leaves half a file."""
    staged = path.with_name(f".{path.name}.tmp")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def flush_to_disk(path: Path) -> None:
    """fsync a file or folder: a rename must not become durable before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
