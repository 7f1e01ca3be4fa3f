"""What the worker processes of `shards.create` and `shards.adopt` have in common: how they end."""

import os
import threading
import time

from toolkit.errors import UserError


def end_with(parent: int) -> None:
    """Called in a worker. A killed parent tells nobody: its workers would wait for work for ever."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def killed() -> UserError:
    """What a pool whose process has vanished means to the user."""
    return UserError(
        "a worker process was killed (for want of memory?); lower --workers and run the same command again to go on"
    )


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
