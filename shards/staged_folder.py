"""A shard folder appears whole or not at all: it is made beside its place, and takes its name at the end."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.report_file import PAGE_NAME, REPORT_NAME
from toolkit.data.shard_format import INDEX_NAME, MANIFEST_NAME
from toolkit.durable import flush_to_disk
from toolkit.errors import UserError


@contextmanager
def staged_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its name at the end, or is removed if anything goes wrong.

    Raises UserError if `out` is in use, or cannot be written.
    """
    out = out.resolve()  # a link keeps pointing to its target, on whose file system the staging must lie
    staging = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        _check_replaceable(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        stale = [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.tmp-")]
        for path in stale:
            print(f"note: {path} is of another build; delete it if none is running", file=sys.stderr)
        staging.mkdir()
        yield staging
        for path in [*staging.iterdir(), staging]:
            flush_to_disk(path)
        _replace(staging, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """UserError unless `out` is free, or holds nothing but shards that `overwrite` allows to replace."""
    if os.path.ismount(out):
        raise UserError(f"{out} is a mount point and cannot be renamed to; name a folder inside it")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a folder")
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if present and not overwrite:
        raise UserError(f"{out} exists and is not empty; choose another --out or add --overwrite")
    known = {MANIFEST_NAME, INDEX_NAME, REPORT_NAME, PAGE_NAME}
    foreign = [name for name in present if name not in known and not name.endswith(".tar")]
    if foreign or (present and MANIFEST_NAME not in present):
        what = f"it holds {foreign[0]}" if foreign else f"it holds no {MANIFEST_NAME}"
        raise UserError(f"{out} is no shard folder ({what}); --overwrite replaces shard folders only")


def _replace(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    flush_to_disk(out.parent)
    shutil.rmtree(old, ignore_errors=True)
