"""A bounded folder of fetched shards on this disk, shared by all processes of the machine.

CACHE/ID/shards/ is a shard folder like any other, as far as it has been fetched; ID is the SHA-256 of its manifest, so
that two data sets never share a file. A file has its name there only once it is whole and verified.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from toolkit.data.shard_format import MANIFEST_NAME
from toolkit.durable import flush_to_disk, write_whole
from toolkit.errors import UserError

GIGABYTE = 10**9
DEFAULT_GIGABYTES = 100


def cache_root() -> Path:
    """TEXT_GAN_CACHE, or text-gan-toolkit/shards in the user's cache folder."""
    if chosen := os.environ.get("TEXT_GAN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "text-gan-toolkit" / "shards"


def cache_bound() -> int:
    """Most bytes of the cache, from TEXT_GAN_CACHE_GB. Raises UserError."""
    text = os.environ.get("TEXT_GAN_CACHE_GB") or str(DEFAULT_GIGABYTES)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 10**9:
        raise UserError(f"TEXT_GAN_CACHE_GB is {text!r}; it must be a number of gigabytes above 0")
    return int(gigabytes * GIGABYTE)


class CachedSet:
    """One data set's part of the cache; nothing of it is evicted as long as a process holds this object."""

    def __init__(self, root: Path, set_id: str, manifest: bytes) -> None:
        """Creates what is missing. Raises UserError if the cache is not writable or cannot be locked."""
        self.root, self.home = root, root / set_id
        self.folder = self.home / "shards"
        with _explained(root):
            for folder in (self.folder, self.home / "partial", self.home / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            with _locked(self.home / "locks" / MANIFEST_NAME):
                write_whole(self.folder / MANIFEST_NAME, manifest)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._hold()

    def _hold(self) -> None:
        """flock, unlike the run folder's lock: data workers inherit it, and what they read must stay as well."""
        self._held = _lock(self.home / "in_use", fcntl.LOCK_SH)

    def has(self, name: str, size: int | None) -> bool:
        """Whether the file is there, of this size if it is known."""
        path = self.folder / name
        return path.is_file() and size in (None, path.stat().st_size)

    def path(self, name: str, size: int | None, fetch: Callable[[Path], None]) -> Path:
        """Where file `name` lies, whole. `fetch` writes and verifies it elsewhere first, in one process at a time."""
        path, partial = self.folder / name, self.home / "partial" / name
        with _explained(self.root):
            if not self.has(name, size):
                with _locked(self.home / "locks" / name):
                    if not self.has(name, size):
                        try:
                            fetch(partial)
                            partial.replace(path)
                            flush_to_disk(self.folder)
                        finally:
                            partial.unlink(missing_ok=True)
            os.utime(path)  # used last, evicted last
        return path

    def reserve(self, total: int, bound: int) -> None:
        """Make room for all `total` bytes of this set by evicting files of sets that nobody reads, oldest use first.

        Raises UserError, with nothing evicted, if the bound or the disk would not do even then.
        """
        with _explained(self.root), _locked(self.root / "lock"), contextlib.ExitStack() as locks:
            reserved, idle = 0, []
            for home in self._others():
                try:
                    locks.enter_context(_locked(home / "in_use", fcntl.LOCK_EX | fcntl.LOCK_NB))
                    idle += _files(home)
                except BlockingIOError:
                    reserved += _reserved(home)
            over = total + reserved + sum(size for _, size, _ in idle) - bound
            free = shutil.disk_usage(self.root).free
            short = total - sum(size for _, size, _ in _files(self.home)) - free
            evictable = sum(size for _, size, _ in idle)
            self._refuse(total, reserved, bound, over - evictable, short - evictable, free)
            write_whole(self.home / "reserved", str(total).encode())
            for _, size, path in sorted(idle):
                if over <= 0 and short <= 0:
                    break
                path.unlink(missing_ok=True)
                over, short = over - size, short - size

    def _others(self) -> list[Path]:
        """By the form of their names: whatever else lies in the folder that the user has chosen stays untouched."""
        homes = (path for path in self.root.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name))
        return [path for path in homes if path.is_dir() and path != self.home]

    def _refuse(self, total: int, reserved: int, bound: int, over: int, short: int, free: int) -> None:
        if over > 0:
            others = f", {gigabytes(reserved)} of which sets in use need" if reserved else ""
            raise UserError(
                f"the data set has {gigabytes(total)}, the cache {self.root} may hold {gigabytes(bound)}{others}; "
                "raise TEXT_GAN_CACHE_GB, or put a part of the shards elsewhere and train from that"
            )
        if short > 0:
            raise UserError(
                f"the data set has {gigabytes(total)}, of which {gigabytes(short)} do not fit on the disk of "
                f"{self.root} ({gigabytes(free)} free); make room or set TEXT_GAN_CACHE to a larger disk"
            )


def gigabytes(count: int) -> str:
    return f"{count / GIGABYTE:,.2f} GB" if count >= GIGABYTE / 10 else f"{count / 10**6:,.2f} MB"


def _files(home: Path) -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of what a set takes up, but for its small files."""
    found = []
    for folder in (home / "shards", home / "partial"):
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # renamed just now
                if path.name != MANIFEST_NAME:
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
    return found


def _reserved(home: Path) -> int:
    """Bytes that a set in use has or will have."""
    present = sum(size for _, size, _ in _files(home))
    with contextlib.suppress(OSError, ValueError):
        return max(present, int((home / "reserved").read_text()))
    return present


def _lock(path: Path, kind: int = fcntl.LOCK_EX) -> IO:
    file = path.open("a+b")
    try:
        fcntl.flock(file, kind)
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def _locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    with _lock(path, kind):
        yield


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise UserError(
            f"the cache of shards does not work at {where} ({error.strerror or error}); set TEXT_GAN_CACHE to a "
            "writable folder on a local disk"
        ) from None
