"""What the processes of a run tell each other besides gradients: stop, failure, equality."""

import atexit
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from toolkit.errors import Diverged, NotSaved, UserError

FAILURES = (UserError, NotSaved, Diverged)
"""In order of weight: of several processes' failures the last of these wins."""


class Processes:
    """The processes of a run. Several of them talk over a group of their own on the CPU (gloo).

    Beside NCCL's that costs no wait for the GPU, so they can agree before every step. Each method that says so is
    called by all processes at the same point.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self.main = accelerator.is_main_process
        self._group = None
        # Kept, for gloo's thread drops its reference after the exchange: were that the last one, it would need the
        # interpreter, and a process that ends just then is aborted ("terminate called without an active exception").
        self._code = torch.zeros(1, dtype=torch.int64)
        if self.count > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def largest(self, code: int) -> int:
        """The largest code of any process. All call it."""
        if self._group is None:
            return code
        self._code.fill_(code)
        torch.distributed.all_reduce(self._code, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(self._code)

    def on_main(self, action: Callable[[], None]) -> None:
        """Run `action` on the main process. If it fails there, all fail alike: none waits for one that is gone."""
        error = None
        if self.main:
            try:
                action()
            except UserError as caught:
                error = caught
        code = self.largest(0 if error is None else FAILURES.index(type(error)) + 1)
        if code:
            atexit.register(self._end_together)
        if error is not None:
            raise error
        if code:
            raise FAILURES[code - 1]("stopped, because the main process could not go on (its message says why)")

    def _end_together(self) -> None:
        """A launcher ends the others as soon as one has ended, so each says first why it ends."""
        with suppress(RuntimeError):  # one is gone already
            self.largest(0)

    def equal(self, fingerprint: Tensor) -> list[int]:
        """The processes whose int64 fingerprint differs from the main one's. All call it."""
        if self._group is None:
            return []
        all_of_them = [torch.empty_like(fingerprint) for _ in range(self.count)]
        torch.distributed.all_gather(all_of_them, fingerprint, group=self._group)
        return [rank for rank, other in enumerate(all_of_them) if not torch.equal(other, all_of_them[0])]
