"""One process's pictures of the coming step, fetched ahead and on its device."""

import sys
from collections.abc import Iterator

import torch
from tqdm import tqdm

from toolkit.data.dataset import Batch, ShardDataset, batches
from toolkit.errors import UserError

SHARE_OF = 1000
"""Pictures from which on a share of damaged ones means something; before, it is taken of this many."""
NAMED = 20
"""Damaged samples that are named on the console; more are only counted."""


class Feed:
    """Loading starts at the first `fetch` after the start or a `close`, at the position given then.

    Counts the pictures it has given away (`read`) and those of them that stand in for damaged samples (`bad`), since
    the process started. More than `max_bad` of them raise UserError.
    """

    def __init__(self, dataset: ShardDataset, batch: int, workers: int, device: torch.device, max_bad: float) -> None:
        self.dataset, self.batch, self.workers, self.device = dataset, batch, workers, device
        self.max_bad, self.read, self.bad = max_bad, 0, 0
        self._named: set[str] = set()
        self._stream: Iterator[list[Batch]] | None = None
        self._ready: list[list[Batch]] = []

    def fetch(self, position: int, share: slice, parts: int, count: int) -> None:
        """Have `count` global batches ready, each as `parts` micro-batches of `share`. May be interrupted anywhere."""
        if self._stream is None:
            pin = self.device.type == "cuda"
            self._stream = batches(self.dataset, position, self.batch, share, parts, self.workers, pin)
        while len(self._ready) < count:
            self._ready.append([batch.to(self.device) for batch in next(self._stream)])

    def take(self) -> list[list[Batch]]:
        """What is ready, in order. Raises UserError if too much of what was read so far is damaged."""
        ready, self._ready = self._ready, []
        for batch in (batch for parts in ready for batch in parts):
            self.read += len(batch.captions)
            self.bad += len(batch.damaged)
            for reasons in batch.damaged:
                self._name(reasons)
                if self.bad > self.max_bad * max(self.read, SHARE_OF):
                    raise UserError(
                        f"{self.bad:,} of the {self.read:,} samples read so far are damaged, more than --max_bad "
                        f"{self.max_bad:g}, the last: {reasons[-1]}; run python -m shards.inspect --verify"
                    )
        return ready

    def _name(self, reasons: tuple[str, ...]) -> None:
        for reason in reasons:
            if len(self._named) < NAMED and reason not in self._named:
                self._named.add(reason)
                last = "; further ones are only counted" if len(self._named) == NAMED else ""
                tqdm.write(f"train: another sample stands in for a damaged one: {reason}{last}", file=sys.stderr)

    def close(self) -> None:
        """Stop the data workers and forget what they have read ahead."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._ready = None, []
