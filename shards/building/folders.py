"""The folders of a build: where it works, and how the result takes its place, whole or not at all.

Beside OUT: `.OUT.building` holds plan and finished parts until the end, over kills; `.OUT.new` is the result being put
together; `.OUT.old` what it replaces, for the moment between two renames; `.OUT.gone` what is being deleted.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.building.plan import PLAN_NAME
from shards.building.presence import Presence
from shards.report_file import PAGE_NAME, REPORT_NAME, SOURCES_NAME
from toolkit.data.shard_format import INDEX_NAME, MANIFEST_NAME, Manifest
from toolkit.durable import flush_to_disk
from toolkit.errors import UserError


class Folders:
    """Of one shard folder OUT. Raises UserError if OUT is a file, a mount point or no shard folder."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()  # a link keeps pointing to its target, on whose file system the others must lie
        if os.path.ismount(self.out):
            raise UserError(f"{out} is a mount point and cannot be renamed to; name a folder inside it")
        self.building, self._new, self._old, self._gone = (
            self.out.with_name(f".{self.out.name}.{what}") for what in ("building", "new", "old", "gone")
        )
        self._presence: Presence | None = None
        self._recover()
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{out} is a file; --out must name a folder")
        check_shard_folder(self.out)

    @property
    def holds_shards(self) -> bool:
        return (self.out / MANIFEST_NAME).is_file()

    @property
    def holds_plan(self) -> bool:
        return (self.building / PLAN_NAME).is_file()

    @property
    def was_removed(self) -> bool:
        """Whether another process has finished the build that this one was at work on."""
        return self._presence is not None and not self._presence.is_current

    def start(self) -> None:
        """From now on this process is at work in `building`, and no other takes the folder away."""
        while self._presence is None:
            self.building.mkdir(parents=True, exist_ok=True)
            self.join()

    def join(self) -> None:
        """`start`, if there is a build to take part in."""
        if self._presence is None and self.building.is_dir():
            with suppress(FileNotFoundError):  # another process has just finished it
                self._presence = Presence(self.building)

    def leave(self) -> None:
        """The last to leave takes away what serves nobody: finished shards help the next try, a plan alone does not."""
        if self._presence is not None:
            begun = self.holds_plan and any(self.building.glob("shard-*.tar"))
            if not begun and self._presence.is_alone():
                self.discard()
            self._close()
        with suppress(OSError):
            self.building.rmdir()  # made for nothing, if it is empty
        shutil.rmtree(self._gone, ignore_errors=True)

    def start_anew(self) -> None:
        """Forget an unfinished build. Raises UserError if another process is at work on it."""
        self.join()
        if self._presence is not None:
            if not self._presence.is_alone():
                raise UserError(f"another process is at work in {self.building}; wait for it, or stop it")
            self.discard()

    def discard(self) -> None:
        """For the only process at work, or the one that puts the result together."""
        shutil.rmtree(self._gone, ignore_errors=True)
        with suppress(OSError):
            self.building.rename(self._gone)  # at once: a kill must not leave a plan without its parts, or the reverse
        self._close()
        shutil.rmtree(self._gone, ignore_errors=True)
        if self.out.exists():
            shutil.rmtree(self._old, ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this process may put the result together: True for one at a time while there is something to do."""
        presence = self._presence
        if presence is None or not presence.take_lead():
            yield False
            return
        try:
            yield presence.is_current and self.holds_plan
        finally:
            presence.give_up_lead()

    @contextmanager
    def new(self) -> Iterator[Path]:
        """An empty folder that takes OUT's place at the end of the block, if it is a shard folder by then.

        The unfinished build is then forgotten.
        """
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir()
        try:
            yield self._new
            if (self._new / MANIFEST_NAME).is_file():
                for path in [*self._new.iterdir(), self._new]:
                    flush_to_disk(path)
                self._replace()
        finally:
            shutil.rmtree(self._new, ignore_errors=True)
        self.discard()

    def _replace(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)
        if self.out.exists():
            self.out.rename(self._old)
        try:
            self._new.rename(self.out)
        except OSError:
            if self._old.exists():
                self._old.rename(self.out)
            raise
        flush_to_disk(self.out.parent)
        shutil.rmtree(self._old, ignore_errors=True)

    def _recover(self) -> None:
        """After a kill between the two renames of `_replace` what stood there comes back."""
        if self._old.is_dir() and not self.out.exists():
            self.join()
            with self.alone() as chosen:  # else another process is between them right now
                if (chosen or not self.building.is_dir()) and not self.out.exists():
                    self._old.rename(self.out)

    def _close(self) -> None:
        if self._presence is not None:
            self._presence.close()
            self._presence = None


def place(source: Path, target: Path) -> None:
    """`source` under a second name, without copying it where the file system can. Never over another file."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def check_shard_folder(out: Path) -> None:
    """UserError unless `out` is absent, empty, or holds a shard folder's files alone: nothing else is ever replaced."""
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not present:
        return
    if MANIFEST_NAME not in present:
        raise UserError(f"{out} is no shard folder (it holds no {MANIFEST_NAME}); choose another --out")
    known = {MANIFEST_NAME, INDEX_NAME, REPORT_NAME, PAGE_NAME, SOURCES_NAME}
    ours = re.compile(r"(shard-\d+|index)\b.*\.(tar|npy)")  # of damaged manifests too, which are to be replaced
    with suppress(UserError):
        known |= {file.name for file in Manifest.load(out).files}
    if foreign := [name for name in present if name not in known and not ours.fullmatch(name)]:
        raise UserError(f"{out} is no shard folder alone (it holds {foreign[0]}); choose another --out")
