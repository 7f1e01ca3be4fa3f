"""A new folder appears whole or not at all: it is made beside its place, and takes its name at the end."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.durable import flush_to_disk
from toolkit.errors import UserError


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end, or is removed if anything goes wrong.

    Raises UserError if something is at `out` already, or it cannot be written.
    """
    out = out.resolve()  # a link keeps pointing to its target, on whose file system the staging must lie
    staging = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UserError(f"{out} exists{' and is not empty' * out.is_dir()}; choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in out.parent.glob(f".{out.name}.tmp-*"):
            print(f"note: {path} is of another command; delete it if none is running", file=sys.stderr)
        staging.mkdir()
        yield staging
        for path in [*staging.iterdir(), staging]:
            flush_to_disk(path)
        staging.rename(out)  # over an empty folder, but over nothing else
        flush_to_disk(out.parent)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
