"""SIGTERM, SIGINT, SIGUSR1 and the file RUN/stop end a run at the next step with a checkpoint.

A second Ctrl-C ends it at once.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BY_FILE = 1000
"""Stands for the stop file among signal numbers."""
STOP_FILE = "stop"
STOP_FILE_EXIT = 75
"""Exit code after a stop file: EX_TEMPFAIL, "try again later". After a signal it is 128 + its number."""


class _Interrupted(BaseException):
    """A signal arrived while waiting for data. No Exception: decoding takes those for a damaged image."""


class StopRequest:
    """Handlers only set a flag, which is read between steps; a wait for data is given up at once."""

    def __init__(self, run: Path, watch_file: bool) -> None:
        self.request, self._process = 0, os.getpid()
        self._file = run / STOP_FILE if watch_file else None
        self._waiting, self._next_look = False, 0.0
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a data worker, just forked
            return
        if self.request and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request = number
        if self._waiting:
            self._waiting = False
            raise _Interrupted

    def wait_for(self, action: Callable[[], None]) -> int:
        """Run `action`, which waits for data and may be cut short; returns what was requested by then, or 0."""
        with contextlib.suppress(_Interrupted):  # outermost: the signal may arrive on any line below
            try:
                self._waiting = True
                if not self.request:
                    action()
            finally:
                self._waiting = False
        self._look_for_file()
        return self.request

    def _look_for_file(self) -> None:
        """Every other second: on a network disk a look may cost as much as a step."""
        if self._file is not None and not self.request and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + 2
            self.request = BY_FILE if self._file.exists() else 0

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def describe(request: int) -> str:
    return "the stop file" if request == BY_FILE else signal.Signals(request).name


def exit_code(request: int) -> int:
    return STOP_FILE_EXIT if request == BY_FILE else 128 + request


def follow_launcher() -> None:
    """Get SIGTERM when the launcher dies: `accelerate launch` does not pass signals on, it leaves an orphan behind.

    Only where the parent is a launcher: a run started from a shell with nohup must outlive that shell.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
        if b"accelerate" in parent or b"torchrun" in parent or b"torch.distributed.run" in parent:
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
