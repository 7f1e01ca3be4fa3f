"""The files of a folder, and the keys by which pictures and captions find each other."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from toolkit.errors import UserError


def list_files(folder: Path) -> list[str]:
    """Sorted relative paths of plain files, without hidden ones. A folder reached twice is read once: no loops.

    Raises UserError if there is no folder or no file, and if any part cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}")
    visited, waiting, files = set(), [""], []
    while waiting:
        inside = waiting.pop()
        try:
            status = os.stat(folder / inside)
            names = sorted(os.listdir(folder / inside))
        except OSError as error:
            raise UserError(f"{folder / inside} cannot be read ({error.strerror})") from None
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        paths = [f"{inside}{name}" for name in names if not name.startswith(".")]
        files += [path for path in paths if os.path.isfile(folder / path)]
        waiting += [f"{path}/" for path in reversed(paths) if os.path.isdir(folder / path)]
    if not files:
        raise UserError(f"{folder} holds no files; it needs pictures and captions")
    return sorted(files)


def key_of(path: str) -> str:
    """The path without its suffix: 'a/plate.v1.jpg' -> 'a/plate.v1'."""
    return str(PurePosixPath(path).with_suffix(""))


def by_key(files: Iterable[str], suffixes: tuple[str, ...], below: str = "") -> list[tuple[str, str]]:
    """(key, path) of the files with one of the suffixes, keys relative to `below`."""
    chosen = (path for path in files if path.startswith(below) and path.lower().endswith(suffixes))
    return [(key_of(path[len(below) :]), path) for path in chosen]
