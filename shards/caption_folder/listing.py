"""The files of a folder, and the keys by which images and captions find each other."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

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
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            names, folders = _entries(folder / inside)
        except OSError as error:
            raise UserError(f"{folder / inside} cannot be read ({error.strerror})") from None
        files += [f"{inside}{name}" for name in names]
        waiting += [f"{inside}{name}/" for name in sorted(folders, reverse=True)]
    if not files:
        raise UserError(f"{folder} holds no files; it needs images and captions")
    files.sort()
    return files


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, links followed."""
    files, folders = [], []
    with os.scandir(folder) as entries:  # knows the kind of an entry without a stat, unless it is a link
        for entry in entries:
            try:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
            except OSError:
                continue  # a link to itself or to what may not be seen
    return files, folders


def key_of(path: str) -> str:
    """The path without its suffix: 'a/plate.v1.jpg' -> 'a/plate.v1'."""
    return posixpath.splitext(path)[0]


def by_key(files: Iterable[str], suffixes: tuple[str, ...], below: str = "") -> Iterator[tuple[str, str]]:
    """(key, path) of the files with one of the suffixes, keys relative to `below`."""
    for path in files:
        if path.startswith(below) and path.lower().endswith(suffixes):
            yield key_of(path[len(below) :]), path
