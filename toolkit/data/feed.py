"""One process's images of the coming step, fetched ahead and on its device."""

import sys
import time
from collections.abc import Generator
from typing import Literal

import torch
from tqdm import tqdm

from toolkit.data import resident as resident_set
from toolkit.data.dataset import Batch, ShardDataset, batches
from toolkit.data.worker_count import WorkerCount
from toolkit.errors import UserError

SHARE_OF = 1000
"""Images from which on a share of damaged ones means something; before, it is taken of this many."""
NAMED = 20
"""Damaged samples that are named on the console; more are only counted."""
RESIDENT_AFTER = 20
"""Steps before a data set is taken into memory by itself: by then a step has shown what it needs of that."""


class Feed:
    """Loading starts at the first `fetch` after the start or a `close`, at the position given then.

    Counts the images it has given away (`read`) and those of them that stand in for damaged samples (`bad`), since
    the process started. More than `max_bad` of them raise UserError. Where the images come from (files read here or
    by any number of `workers`, or the set in memory if `resident`) changes none of them.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch: int,
        workers: int | Literal["auto"],
        device: torch.device,
        max_bad: float,
        resident: bool | Literal["auto"] = False,
        shown: bool = True,
    ) -> None:
        self.dataset, self.batch, self.device = dataset, batch, device
        self.workers = WorkerCount(workers)
        self.resident: resident_set.ResidentSet | None = None
        self.max_bad, self.read, self.bad, self.shown = max_bad, 0, 0, shown
        self._wanted, self._taken = resident, 0
        self._waited, self._last = 0.0, time.perf_counter()
        self._named: set[str] = set()
        self._stream: Generator[list[Batch], None, None] | None = None
        self._ready: list[list[Batch]] = []

    def fetch(self, position: int, share: slice, parts: int, count: int) -> None:
        """Have `count` global batches ready, each as `parts` micro-batches of `share`. May be interrupted anywhere."""
        start = time.perf_counter()
        if self._stream is None:
            self._stream = self.open(position, share, parts)
        while len(self._ready) < count:
            self._ready.append([batch.to(self.device) for batch in next(self._stream)])
        self._waited += time.perf_counter() - start

    def open(self, position: int, share: slice, parts: int) -> Generator[list[Batch], None, None]:
        """Global batches from `position` on, from wherever they now come fastest. Close it."""
        if self._wanted is True and self.resident is None:
            self._load()
        if self.resident is not None:
            return self.resident.batches(self.dataset, position, self.batch, share, parts)
        pin = self.device.type == "cuda"
        return batches(self.dataset, position, self.batch, share, parts, self.workers.count, pin)

    def settle(self) -> None:
        """Decide at once what training finds out in its first steps: for a measurement."""
        if self._wanted == "auto":
            self._wanted = resident_set.fits(self.dataset.shards, self.device)
        if not self.workers.given:
            self.workers.count = self.workers.most

    def _load(self) -> None:
        self.resident = resident_set.ResidentSet(self.dataset.shards, self.device, self.workers.most, self.shown)
        self._say(f"{len(self.dataset.shards):,} images on {self.device}, {self.resident.bytes() / 1e6:,.0f} MB")

    def _adjust(self) -> None:
        """After a step, which has left nothing in stock: the next `fetch` opens the stream that is found best here."""
        waited, passed = self._waited, time.perf_counter() - self._last
        self._waited, self._last, self._taken = 0.0, time.perf_counter(), self._taken + 1
        if self.resident is not None:
            return
        if self._wanted == "auto" and self._taken == RESIDENT_AFTER:
            self._wanted = resident_set.fits(self.dataset.shards, self.device)
            change = ""
        else:
            change = self.workers.saw(waited, passed)
        if change:
            self._say(change)
        if change or self._wanted is True:
            self.close()

    def _say(self, line: str) -> None:
        if self.shown:
            tqdm.write(f"data: {line}", file=sys.stderr)

    def take(self) -> list[list[Batch]]:
        """What is ready, in order. Raises UserError if too much of what was read so far is damaged."""
        ready, self._ready = self._ready, []
        self._adjust()
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
