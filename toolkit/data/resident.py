"""A whole data set, decoded, in the memory of the device that trains on it: a batch is then a matter of indexing."""

import contextlib
import itertools
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from toolkit.data import loader_workers
from toolkit.data.dataset import Batch, PositionSampler, ShardDataset, Visit, read_decoded
from toolkit.data.shard_reader import DamagedSample, ShardSet, Texts
from toolkit.errors import UserError

SHARE = 0.25
"""Of the free memory that a data set may take without being asked to."""
AT_ONCE = 64
"""Samples that a loading process hands over together."""


class Row(NamedTuple):
    """A sample without its image."""

    number: int
    first: int
    """Place of its first caption in `ResidentSet.vectors`."""
    captions: tuple[str, ...]
    vectors: Tensor
    """float32 [K, E] on the CPU, where the draws are made."""


class Chunk(NamedTuple):
    """Some samples, one after the other."""

    images: Tensor
    """uint8 [n, 3, R, R]; black where damaged."""
    vectors: Tensor
    """float32 [m, E], of all captions."""
    captions: list[tuple[str, ...]]
    """None if they are damaged."""
    damage: list[str]
    """What is wrong with each, or ''."""


class ResidentSet:
    """All samples of a shard folder on one device.

    Raises UserError if they do not fit, or if a loading process has died.
    """

    def __init__(self, shards: ShardSet, device: torch.device, workers: int, shown: bool) -> None:
        side, self.device = shards.manifest.resolution, device
        if (needed := size(shards)) > (free := free_memory(device)):
            raise UserError(
                f"{len(shards):,} images take {needed / 1e6:,.0f} MB, {device} has {free / 1e6:,.0f} MB free; pass "
                "--resident false"
            )
        self.images = torch.empty(len(shards), 3, side, side, dtype=torch.uint8, device=device)
        """uint8 [N, 3, R, R]."""
        self._captions: list[tuple[str, ...]] = []
        self._damage: list[str] = []
        vectors = []
        progress = tqdm(total=len(shards), desc="data", leave=False, disable=None if shown else True)
        with progress, contextlib.closing(_chunks(shards, workers)) as chunks:
            for chunk in chunks:
                start = len(self._captions)
                self.images[start : start + len(chunk.images)] = chunk.images.to(device)
                vectors.append(chunk.vectors)
                self._captions += chunk.captions
                self._damage += chunk.damage
                progress.update(len(chunk.images))
        self._vectors = torch.cat(vectors)
        self.vectors = self._vectors.to(device)
        """float32 [M, E], unit length: the embeddings of all captions, sample by sample."""
        self._first = [0, *itertools.accumulate(len(captions) for captions in self._captions)]

    def bytes(self) -> int:
        return self.images.nbytes + self.vectors.nbytes

    def batches(
        self, dataset: ShardDataset, start: int, batch: int, share: slice, parts: int
    ) -> Generator[list[Batch], None, None]:
        """What `toolkit.data.dataset.batches` gives, bit for bit."""
        sampler = PositionSampler(start, batch, share, parts)
        positions = iter(sampler)
        while True:
            yield [self._batch([dataset.visit(p, self._read, self._texts) for p in next(positions)], rows)
                   for rows in sampler.rows]  # fmt: skip

    def _batch(self, visits: list[Visit[Row, Row]], rows: slice) -> Batch:
        text = [visit.sample.first + visit.caption for visit in visits]
        other = [visit.other.first + visit.other_caption if visit.other else own
                 for visit, own in zip(visits, text, strict=True)]  # fmt: skip
        differs = [int(visit.other is not None) for visit in visits]
        # All numbers in one transfer.
        places = torch.tensor([[visit.sample.number for visit in visits], text, other, differs]).to(self.device)
        captions = tuple(visit.sample.captions[visit.caption] for visit in visits)
        damaged = tuple(visit.damaged for visit in visits if visit.damaged)
        return Batch(self.images[places[0]], self.vectors[places[1]], self.vectors[places[2]], places[3].float(),
                     captions, places[0], rows, damaged)  # fmt: skip

    def _read(self, number: int) -> Row:
        if self._damage[number]:
            raise DamagedSample(self._damage[number])
        return self._texts(number)

    def _texts(self, number: int) -> Row:
        captions, first = self._captions[number], self._first[number]
        if not captions:
            raise DamagedSample(self._damage[number])
        return Row(number, first, captions, self._vectors[first : first + len(captions)])


class _Samples(Dataset):
    """Sample number -> (image, texts, what is wrong or '')."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __getitem__(self, number: int) -> tuple[Tensor, Texts, str]:
        try:
            sample, image = read_decoded(self.shards, number)
            return image, Texts(sample.captions, sample.vectors), ""
        except DamagedSample as error:
            side = self.shards.manifest.resolution
            return torch.zeros(3, side, side, dtype=torch.uint8), self._texts(number), str(error)

    def _texts(self, number: int) -> Texts:
        """Of a damaged sample: the captions may be sound, and then serve others as mismatched ones."""
        try:
            return self.shards.read_texts(number)
        except DamagedSample:
            return Texts((), torch.empty(0, self.shards.manifest.encoder.dimension))


def _chunks(shards: ShardSet, workers: int) -> Generator[Chunk, None, None]:
    numbers = [list(range(i, min(i + AT_ONCE, len(shards)))) for i in range(0, len(shards), AT_ONCE)]
    return loader_workers.collated(_Samples(shards), numbers, _collate, workers)


def _collate(items: list[tuple[Tensor, Texts, str]]) -> Chunk:
    images, texts, damage = zip(*items, strict=True)
    vectors = torch.cat([vectors for _, vectors in texts])
    return Chunk(torch.stack(images), vectors, [captions for captions, _ in texts], list(damage))


def size(shards: ShardSet) -> int:
    """Bytes of the decoded set, nearly: float16 embeddings become float32, a few headers are counted along."""
    return len(shards) * 3 * shards.manifest.resolution**2 + 2 * int(shards.index[:, -1].sum())


def fits(shards: ShardSet, device: torch.device) -> bool:
    """Whether the set takes no more than SHARE of the memory that is free for this process now."""
    room = SHARE * free_memory(device)
    return len(shards) * 3 * shards.manifest.resolution**2 <= room and size(shards) <= room


def free_memory(device: torch.device) -> int:
    """Bytes; of the CPU's memory this process's part. 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return 0
    return min(_available(), _left_in_container()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _available() -> int:
    """By the system's own estimate, which counts caches as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0


def _left_in_container() -> int:
    """What the control group (version 2) of a container or job may still take."""
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # none, or 'max'
        return sys.maxsize
