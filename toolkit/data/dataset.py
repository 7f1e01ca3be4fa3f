"""Shards -> batches. Order, caption choice and mismatched captions are functions of (seed, position) alone.

Map-style over the shard index: the state of the whole data pipeline is one integer, the pictures consumed so far, and
the batches are the same for any number of processes and workers.
"""

import signal
import threading
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from toolkit import draws
from toolkit.data.decoding import decode_picture
from toolkit.data.images import from_pil
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

MISMATCH_TRIES = 16
"""Draws for a caption that differs; with two captions in equal parts the chance to find none is 2^-16."""
SAME_TEXT_COSINE = 0.999
GRACE = 2.0
"""Seconds for data workers to end by themselves."""


class Item(NamedTuple):
    """One visit to one picture."""

    picture: Tensor
    """uint8 [3, R, R]."""
    text: Tensor
    """float32 [E], of the caption drawn for this visit."""
    mismatched: Tensor
    """float32 [E], a caption of another picture that is none of this picture's."""
    differs: float
    """1, or 0 if no such caption was found (then `mismatched` is a copy of `text`)."""
    caption: str


class Batch(NamedTuple):
    """A micro-batch of one process."""

    pictures: Tensor
    """uint8 [N, 3, R, R]."""
    text: Tensor
    """float32 [N, E], unit length."""
    mismatched: Tensor
    """float32 [N, E], unit length."""
    differs: Tensor
    """float32 [N], 1 where `mismatched` really differs."""
    captions: tuple[str, ...]
    rows: slice
    """Which rows of the global batch these are: picks the matching random numbers."""

    def to(self, device: torch.device) -> "Batch":
        moved = [tensor.to(device, non_blocking=True) for tensor in self[:4]]
        return Batch(*moved, self.captions, self.rows)


class ShardDataset(Dataset):
    """Position p (0, 1, 2, ... over all epochs) -> Item."""

    def __init__(self, shards: ShardSet, seed: int, mismatch: bool = True) -> None:
        self.shards, self.seed, self.mismatch = shards, seed, mismatch
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("shards", "seed", "mismatch")}  # the cache does not pickle

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["shards"], state["seed"], state["mismatch"])

    def sample_at(self, position: int) -> int:
        """The sample number at a position: each epoch of len(shards) positions is a permutation."""
        epoch, place = divmod(position, len(self.shards))
        return int(self._order(epoch)[place])

    def __getitem__(self, position: int) -> Item:
        number = self.sample_at(position)
        sample = self.shards.read(number)
        try:
            picture = from_pil(decode_picture(sample.picture))
        except UserError as error:
            raise UserError(f"{self.shards.folder}: sample {number}: {error}; run python -m shards.inspect") from None
        chosen = draws.integer(len(sample.captions), self.seed, "caption", position)
        text = sample.vectors[chosen]
        mismatched = self._other_caption(position, set(sample.captions), sample.vectors) if self.mismatch else None
        differs = mismatched is not None
        return Item(picture, text, mismatched if differs else text, float(differs), sample.captions[chosen])

    def _other_caption(self, position: int, own: set[str], own_vectors: Tensor) -> Tensor | None:
        for attempt in range(MISMATCH_TRIES):
            where = (self.seed, "mismatch", position, attempt)
            other = self.shards.read(draws.integer(len(self.shards), *where))
            k = draws.integer(len(other.captions), *where, 1)
            if other.captions[k] not in own and (own_vectors @ other.vectors[k]).max() < SAME_TEXT_COSINE:
                return other.vectors[k]
        return None

    def _permutation(self, epoch: int) -> Tensor:
        return draws.permutation(len(self.shards), self.seed, epoch)


class PositionSampler(Sampler[list[int]]):
    """The positions of one process's micro-batches, endlessly from `start`."""

    def __init__(self, start: int, batch: int, share: slice, parts: int) -> None:
        self.start, self.batch, self.parts = start, batch, parts
        size = (share.stop - share.start) // parts
        self.rows = [slice(share.start + i * size, share.start + (i + 1) * size) for i in range(parts)]

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start
        while True:
            for rows in self.rows:
                yield list(range(first + rows.start, first + rows.stop))
            first += self.batch


def batches(
    dataset: ShardDataset, start: int, batch: int, share: slice, parts: int, workers: int, pin: bool = False
) -> Generator[list[Batch], None, None]:
    """For each global batch from position `start` on: this process's `parts` micro-batches.

    `share` are the process's rows of the global batch. Raises UserError if a sample cannot be read.
    """
    sampler = PositionSampler(start, batch, share, parts)
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_collate, pin_memory=pin,
        prefetch_factor=4 if workers else None, worker_init_fn=_leave_signals_to_the_trainer,
    )  # fmt: skip
    iterator = iter(loader)
    try:
        while True:
            yield [next(iterator)._replace(rows=rows) for rows in sampler.rows]
    except UserError as error:  # a worker's error carries its whole traceback as its message
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("toolkit.errors.UserError: ")) from None
    finally:
        if workers:
            _end_workers(iterator)


def _end_workers(iterator) -> None:
    """Now and not at the interpreter's exit, which would wait for workers deaf to its signal.

    Those in a read that does not end are killed: a run that was told to stop has seconds to save.
    """
    late = threading.Timer(GRACE, lambda: [worker.kill() for worker in iterator._workers])
    signal_handling._remove_worker_pids(id(iterator))  # or torch raises in the main thread when one is killed
    iterator._worker_pids_set = False
    late.start()
    try:
        iterator._shutdown_workers()
    finally:
        late.cancel()


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Launchers signal the whole process group; a worker that dies of it would take the last checkpoint along."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _collate(items: list[Item]) -> Batch:
    pictures, text, mismatched, differs, captions = zip(*items, strict=True)
    return Batch(
        torch.stack(pictures),
        torch.stack(text),
        torch.stack(mismatched),
        torch.tensor(differs),
        captions,
        slice(0),
    )
