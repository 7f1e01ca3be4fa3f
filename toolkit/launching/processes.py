"""What the processes of a run tell each other besides gradients: stop, failure, equality."""

import atexit
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from toolkit.errors import Diverged, NotSaved, UserError

Result = TypeVar("Result")
FAILURES = (UserError, NotSaved, Diverged)
"""In order of weight: of several processes' failures the last of these wins."""


class Processes:
    """The processes of a run. Several of them talk over a group of their own on the CPU (gloo).

    Beside NCCL's that costs no wait for the GPU, so they can agree before every step. Each method that says so is
    called by all processes at the same point.
    """

    def __init__(self, accelerator: Accelerator | None, timeout: float) -> None:
        """`accelerator` None: this process is alone. `timeout`: seconds one waits for another."""
        self.count: int = accelerator.num_processes if accelerator else 1
        self.index: int = accelerator.process_index if accelerator else 0
        self.main = self.index == 0
        self._group: torch.distributed.ProcessGroup | None = None
        # Kept, for gloo's thread drops its reference after the exchange: were that the last one, it would need the
        # interpreter, and a process that ends just then is aborted ("terminate called without an active exception").
        self._code = torch.zeros(1, dtype=torch.int64)
        if self.count > 1:
            group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            assert isinstance(group, torch.distributed.ProcessGroup)  # a number for processes outside: there are none
            self._group = group

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

    def together(self, action: Callable[[], Result]) -> Result:
        """Run `action` on every process, all at the same point; if it fails on one, all fail, so none waits for it."""
        failure: Exception | None = None
        results: list[Result] = []
        try:
            results.append(action())
        except Exception as error:
            failure = error
        code = self.largest(0 if failure is None else 1)
        if failure is not None:
            raise failure
        if code:
            raise UserError("given up, because another process could not go on (its message says why)")
        return results[0]

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Float32 [n, C] of each process, n may differ and be 0 -> all of them on the main one, elsewhere none.

        All call it.
        """
        if self._group is None:
            return [rows]
        width = self.largest(rows.shape[1] if len(rows) else 0)
        counts = [self.largest(len(rows) if index == self.index else 0) for index in range(self.count)]
        padded = torch.zeros(max(counts), width)
        padded[: len(rows)] = rows if len(rows) else 0
        found = [torch.empty_like(padded) for _ in counts] if self.main else None
        torch.distributed.gather(padded, found, group=self._group)
        return [] if found is None else [part[:count] for part, count in zip(found, counts, strict=True)]

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
