"""Commands that die: at any file operation, in this process; and two of them at once, in processes of their own."""

import os
import shutil
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.running import finish


class Killed(BaseException):
    """What a dead process does not do any more."""


class Mortal:
    """Lets the file operations of this process fail for good from the `last` one on, as after kill -9."""

    def __init__(self, monkeypatch, last: int) -> None:
        self.last, self.count = last, 0
        for owner, name in ((Path, "open"), (Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, operation):
        def counted(path, *arguments, **options):
            if operation.__name__ != "open" or arguments[:1] in (("wb",), ("xb",), ("ab",)):
                self.count += 1
                if self.count > self.last:
                    raise Killed
            return operation(path, *arguments, **options)

        return counted


def launch_two(*arguments: str) -> None:
    """As torchrun would, of which the command wants the environment alone."""
    environment = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = ["-m", "shards.embed", *arguments]
    both = [Forked(command, REPOSITORY, {**environment, "RANK": str(rank)}) for rank in range(2)]
    for process in both:
        said = finish(process)
        assert process.returncode == 0, said[-2000:]
