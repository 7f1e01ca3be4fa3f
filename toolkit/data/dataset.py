"""Shards -> batches. Order, caption choice and mismatched captions are functions of (seed, position) alone.

Map-style over the shard index: the state of the whole data pipeline is one integer, the pictures consumed so far, and
the batches are the same for any number of processes and workers.
"""

import contextlib
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from toolkit import draws
from toolkit.data import loader_workers
from toolkit.data.decoding import BadPicture, decode_picture, fit_square
from toolkit.data.images import from_pil
from toolkit.data.shard_reader import DamagedSample, Sample, ShardSet
from toolkit.errors import UserError

MISMATCH_TRIES = 16
"""Draws for a caption that differs; with two captions in equal parts the chance to find none is 2^-16."""
SAME_TEXT_COSINE = 0.999
BAD_IN_A_ROW = 100
"""Damaged samples in a row after which there is nothing to train on."""


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
    damaged: tuple[str, ...] = ()
    """What is wrong with the samples that this one stands in for: shard, sample, reason."""


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
    damaged: tuple[tuple[str, ...], ...] = ()
    """Per picture that stands in for damaged samples: what is wrong with them."""

    def to(self, device: torch.device) -> "Batch":
        moved = [tensor.to(device, non_blocking=True) for tensor in self[:4]]
        return Batch(*moved, *self[4:])


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
        """Another sample stands in for a damaged one, which one is a function of (seed, position) too.

        Raises UserError after BAD_IN_A_ROW damaged ones.
        """
        sample, picture, damaged = self._sound(position)
        chosen = draws.integer(len(sample.captions), self.seed, "caption", position)
        text = sample.vectors[chosen]
        mismatched = self._other_caption(position, set(sample.captions), sample.vectors) if self.mismatch else None
        differs = mismatched is not None
        return Item(picture, text, mismatched if differs else text, float(differs), sample.captions[chosen], damaged)

    def _sound(self, position: int) -> tuple[Sample, Tensor, tuple[str, ...]]:
        """The sample at a position, or the first sound one of those drawn for it; and what was wrong before."""
        damaged: list[str] = []
        while len(damaged) < BAD_IN_A_ROW:
            number = self.sample_at(position)
            if damaged:
                number = draws.integer(len(self.shards), self.seed, "stand-in", position, len(damaged))
            try:
                return *read_decoded(self.shards, number), tuple(damaged)
            except DamagedSample as error:
                damaged.append(str(error))
        raise UserError(
            f"{BAD_IN_A_ROW} damaged samples in a row, the last: {damaged[-1]}; run python -m shards.inspect"
        )

    def _other_caption(self, position: int, own: set[str], own_vectors: Tensor) -> Tensor | None:
        for attempt in range(MISMATCH_TRIES):
            where = (self.seed, "mismatch", position, attempt)
            try:
                other = self.shards.read(draws.integer(len(self.shards), *where))
            except DamagedSample:  # named and counted when its own turn comes
                continue
            k = draws.integer(len(other.captions), *where, 1)
            if other.captions[k] not in own and (own_vectors @ other.vectors[k]).max() < SAME_TEXT_COSINE:
                return other.vectors[k]
        return None

    def _permutation(self, epoch: int) -> Tensor:
        return draws.permutation(len(self.shards), self.seed, epoch)


def read_decoded(shards: ShardSet, number: int) -> tuple[Sample, Tensor]:
    """A sample and its picture, uint8 [3, R, R]. Raises DamagedSample."""
    sample, side = shards.read(number), shards.manifest.resolution
    try:
        picture = decode_picture(sample.picture)
        if shards.manifest.fit:
            picture = fit_square(picture, side, shards.manifest.fit)
        if picture.size != (side, side):
            raise BadPicture(f"{picture.width}x{picture.height} px, not {side}x{side}")
    except BadPicture as error:
        raise DamagedSample(f"{shards.shard_path(number)}: sample {number}: {error}") from None
    return sample, from_pil(picture)


def sound_samples(shards: ShardSet, numbers: list[int]) -> Iterator[tuple[Sample, Tensor]]:
    """Those of `numbers` that can be read, in order: what is drawn and scored must not end a run."""
    for number in numbers:
        with contextlib.suppress(DamagedSample):
            yield read_decoded(shards, number)


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

    `share` are the process's rows of the global batch. Raises UserError if too many samples in a row are
    damaged, or if a worker has died.
    """
    sampler = PositionSampler(start, batch, share, parts)
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_collate, pin_memory=pin,
        prefetch_factor=4 if workers else None, worker_init_fn=loader_workers.leave_signals_to_the_trainer,
    )  # fmt: skip
    iterator = iter(loader)
    following = next
    if workers:
        loader_workers.adopt(iterator)
        following = loader_workers.next_from
    try:
        while True:
            yield [following(iterator)._replace(rows=rows) for rows in sampler.rows]
    except UserError as error:  # a worker's error carries its whole traceback as its message
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("toolkit.errors.UserError: ")) from None
    finally:
        if workers:
            loader_workers.end(iterator)


def _collate(items: list[Item]) -> Batch:
    pictures, text, mismatched, differs, captions, damaged = zip(*items, strict=True)
    return Batch(
        torch.stack(pictures),
        torch.stack(text),
        torch.stack(mismatched),
        torch.tensor(differs),
        captions,
        slice(0),
        tuple(found for found in damaged if found),
    )
