"""Shards -> batches. Order, caption choice and mismatched captions are functions of (seed, position) alone.

Map-style over the shard index: the state of the whole data pipeline is one integer, the images consumed so far, and
the batches are the same for any number of processes and workers.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from toolkit import draws
from toolkit.data import loader_workers
from toolkit.data.decoding import BadImage, decode_pixels, fit_square
from toolkit.data.pairs import in_pairs
from toolkit.data.shard_reader import DamagedSample, Sample, ShardSet
from toolkit.errors import UserError

MISMATCH_TRIES = 16
"""Draws for a caption that differs; with two captions in equal parts the chance to find none is 2^-16."""
BAD_IN_A_ROW = 100
"""Damaged samples in a row after which there is nothing to train on."""


class Item(NamedTuple):
    """One visit to one image."""

    image: Tensor
    """uint8 [3, R, R]."""
    text: Tensor
    """float32 [E], of the caption drawn for this visit."""
    mismatched: Tensor
    """float32 [E], a caption of another image that is none of this image's, nor a near-synonym of one."""
    differs: float
    """1, or 0 if no such caption was found (then `mismatched` is a copy of `text`)."""
    caption: str
    number: int
    """Of the sample."""
    damaged: tuple[str, ...] = ()
    """What is wrong with the samples that this one stands in for: shard, sample, reason."""


class Batch(NamedTuple):
    """A micro-batch of one process."""

    images: Tensor
    """uint8 [N, 3, R, R]."""
    text: Tensor
    """float32 [N, E], unit length."""
    mismatched: Tensor
    """float32 [N, E], unit length."""
    differs: Tensor
    """float32 [N], 1 where `mismatched` really differs."""
    captions: tuple[str, ...]
    numbers: Tensor
    """int64 [N], of the samples."""
    rows: slice
    """Which rows of the global batch these are: picks the matching random numbers."""
    damaged: tuple[tuple[str, ...], ...] = ()
    """Per image that stands in for damaged samples: what is wrong with them."""

    def to(self, device: torch.device) -> "Batch":
        images, text, mismatched, differs = (tensor.to(device, non_blocking=True) for tensor in self[:4])
        numbers = self.numbers.to(device, non_blocking=True)
        return self._replace(images=images, text=text, mismatched=mismatched, differs=differs, numbers=numbers)


class Readable(Protocol):
    """A sample's captions, however the rest of it is held."""

    @property
    def captions(self) -> tuple[str, ...]: ...

    @property
    def vectors(self) -> Tensor: ...


Held = TypeVar("Held", bound=Readable)
OtherHeld = TypeVar("OtherHeld", bound=Readable)


class Visit(NamedTuple, Generic[Held, OtherHeld]):
    """What is drawn at one position."""

    sample: Held
    caption: int
    other: OtherHeld | None
    """A sample with a caption that is none of this one's nor a near-synonym, if one was found."""
    other_caption: int
    damaged: tuple[str, ...]
    """What is wrong with the samples that `sample` stands in for: shard, sample, reason."""


class Decoded(NamedTuple):
    number: int
    image: Tensor
    captions: tuple[str, ...]
    vectors: Tensor


class ShardDataset(Dataset):
    """Position p (0, 1, 2, ... over all epochs) -> Item.

    `mismatch_cosine`, in (0, 1]: what is not below it to all of an image's captions is no mismatched caption.
    `groups` int64 [N], equal for samples with the same captions: two of them side by side at each even position.
    """

    def __init__(
        self,
        shards: ShardSet,
        seed: int,
        mismatch: bool = True,
        mismatch_cosine: float = 0.999,
        groups: np.ndarray | None = None,
    ) -> None:
        self.shards, self.seed, self.mismatch, self.mismatch_cosine = shards, seed, mismatch, mismatch_cosine
        self.groups = groups
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}  # the cache does not pickle

    def __setstate__(self, state: dict) -> None:
        ShardDataset.__init__(self, **state)

    def sample_at(self, position: int) -> int:
        """The sample number at a position: each epoch of len(shards) positions is a permutation."""
        epoch, place = divmod(position, len(self.shards))
        return int(self._order(epoch)[place])

    def __getitem__(self, position: int) -> Item:
        """Another sample stands in for a damaged one, which one is a function of (seed, position) too.

        Raises UserError after BAD_IN_A_ROW damaged ones.
        """
        sample, caption, other, other_caption, damaged = self.visit(position, self._decoded, self.shards.read_texts)
        text = sample.vectors[caption]
        mismatched = text if other is None else other.vectors[other_caption]
        differs = float(other is not None)
        return Item(sample.image, text, mismatched, differs, sample.captions[caption], sample.number, damaged)

    def visit(
        self, position: int, read: Callable[[int], Held], read_texts: Callable[[int], OtherHeld]
    ) -> Visit[Held, OtherHeld]:
        """The draws of a position; both functions take a sample's number and raise DamagedSample.

        Raises UserError after BAD_IN_A_ROW damaged samples.
        """
        sample, damaged = self._sound(position, read)
        first = position if self.groups is None else position // 2 * 2  # a pair of many captions shows the same one
        caption = draws.integer(len(sample.captions), self.seed, "caption", first)
        other, other_caption = self._other_caption(position, sample, read_texts) if self.mismatch else (None, 0)
        return Visit(sample, caption, other, other_caption, damaged)

    def _sound(self, position: int, read: Callable[[int], Held]) -> tuple[Held, tuple[str, ...]]:
        """The sample at a position, or the first sound one of those drawn for it; and what was wrong before."""
        damaged: list[str] = []
        while len(damaged) < BAD_IN_A_ROW:
            number = self.sample_at(position)
            if damaged:
                number = draws.integer(len(self.shards), self.seed, "stand-in", position, len(damaged))
            try:
                return read(number), tuple(damaged)
            except DamagedSample as error:
                damaged.append(str(error))
        raise UserError(
            f"{BAD_IN_A_ROW} damaged samples in a row, the last: {damaged[-1]}; run python -m shards.inspect"
        )

    def _other_caption(
        self, position: int, own: Readable, read_texts: Callable[[int], OtherHeld]
    ) -> tuple[OtherHeld | None, int]:
        for attempt in range(MISMATCH_TRIES):
            where = (self.seed, "mismatch", position, attempt)
            try:
                other = read_texts(draws.integer(len(self.shards), *where))
            except DamagedSample:  # named and counted when its own turn comes
                continue
            k = draws.integer(len(other.captions), *where, 1)
            nearest = (own.vectors @ other.vectors[k]).max()
            if other.captions[k] not in own.captions and nearest < self.mismatch_cosine:
                return other, k
        return None, 0

    def _decoded(self, number: int) -> Decoded:
        image, captions, vectors = self.shards.read(number)
        return Decoded(number, _image(self.shards, number, image), captions, vectors)

    def _permutation(self, epoch: int) -> np.ndarray:
        order = draws.permutation(len(self.shards), self.seed, epoch).numpy()
        return order if self.groups is None else in_pairs(order, self.groups, self.seed, epoch)


def read_decoded(shards: ShardSet, number: int) -> tuple[Sample, Tensor]:
    """A sample and its image, uint8 [3, R, R]. Raises DamagedSample."""
    sample = shards.read(number)
    return sample, _image(shards, number, sample.image).contiguous()


def _image(shards: ShardSet, number: int, data: bytes) -> Tensor:
    """uint8 [3, R, R], its channels side by side: to part them costs less in a whole batch. Raises DamagedSample."""
    side, fit = shards.manifest.resolution, shards.manifest.fit
    try:
        pixels = decode_pixels(data)
        if fit:
            pixels = np.asarray(fit_square(Image.fromarray(pixels), side, fit))
        if pixels.shape != (side, side, 3):
            raise BadImage(f"{pixels.shape[1]}x{pixels.shape[0]} px, not {side}x{side}")
    except BadImage as error:
        raise DamagedSample(f"{shards.shard_path(number)}: sample {number}: {error}") from None
    pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of memory it must not write to
    return torch.from_numpy(pixels).permute(2, 0, 1)


def sound_samples(shards: ShardSet, numbers: list[int]) -> Iterator[tuple[Sample, Tensor]]:
    """Those of `numbers` that can be read, in order: what is drawn and scored must not end a run."""
    return (pair for _, pair in sound_numbers(shards, numbers))


def sound_numbers(shards: ShardSet, numbers: list[int]) -> Iterator[tuple[int, tuple[Sample, Tensor]]]:
    """The same, each with its number."""
    for number in numbers:
        with contextlib.suppress(DamagedSample):
            yield number, read_decoded(shards, number)


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
    stream = loader_workers.collated(dataset, sampler, _collate, workers, pin)
    try:
        while True:
            yield [next(stream)._replace(rows=rows) for rows in sampler.rows]
    finally:
        stream.close()


def _collate(items: list[Item]) -> Batch:
    images, text, mismatched, differs, captions, numbers, damaged = zip(*items, strict=True)
    return Batch(
        torch.stack(images).contiguous(),
        torch.stack(text),
        torch.stack(mismatched),
        torch.tensor(differs),
        captions,
        torch.tensor(numbers),
        slice(0),
        tuple(found for found in damaged if found),
    )
