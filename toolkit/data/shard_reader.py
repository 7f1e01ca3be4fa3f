"""Random access to the samples of a shard folder: sample i is one or a few reads at known offsets."""

import io
import json
import math
import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.data.npy import read_npy
from toolkit.data.shard_format import Manifest
from toolkit.data.sidecar import check_sidecar
from toolkit.data.tar_index import INDEX_COLUMNS, MAX_MEMBER_BYTES
from toolkit.errors import UserError

MAX_OPEN = 500
"""Files kept open at a time; a process may usually have 1,024."""
MAX_GAP = 2**14
"""Bytes between members that are read along: cheaper than a read more."""
SHORTEST = 1e-6
"""Length of an embedding below which it has no direction."""


class DamagedSample(UserError):
    """One sample that cannot be used; the rest of the set may be sound."""


class Sample(NamedTuple):
    """One image as it stands in the shard, with its captions."""

    image: bytes
    """A JPEG, PNG or WebP file, or a .npy of uint8 [R, R, 3]."""
    captions: tuple[str, ...]
    vectors: Tensor
    """float32 [len(captions), E], unit length."""


class Texts(NamedTuple):
    """A sample without its image."""

    captions: tuple[str, ...]
    vectors: Tensor
    """float32 [len(captions), E], unit length."""


class ShardSet:
    """The samples of a shard folder, by number. Safe in worker processes: reads share no file position.

    Opening checks every shard's presence and size against the manifest; raises UserError naming what differs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.index = self._load_index()
        """int64 [N, 7], columns INDEX_COLUMNS, mapped from its file."""
        self._check_sizes()
        tars = [file.bytes for file in self.manifest.shards]
        self._ends = list(zip(tars, [file.bytes for file in self.manifest.vectors] or tars, strict=True))
        self._open = lru_cache(MAX_OPEN)(self._open_file)

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}  # no files for other processes

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._open = lru_cache(MAX_OPEN)(self._open_file)

    def read(self, i: int) -> Sample:
        """Sample `i` in [0, len). Raises DamagedSample naming shard and sample if its bytes are damaged."""
        return Sample(*self._read(i, first=0))

    def read_texts(self, i: int) -> Texts:
        """The same without the image, whose bytes stay where they are."""
        return Texts(*self._read(i, first=2))

    def read_captions(self, i: int) -> tuple[str, ...]:
        """The captions alone, whatever the embeddings are. Raises DamagedSample."""
        shard, *spans = self._place(i)
        try:
            (text,) = _bytes(self._open(self._tar_name(shard)), spans[2:4])
            return self._captions(text.decode("utf-8"))
        except (ValueError, OSError) as error:
            raise DamagedSample(f"{self._shard_path(shard)}: sample {i} is damaged ({error})") from None

    def _place(self, i: int) -> list[int]:
        """The row of the index, checked: asked of each sample, for an index of 1e8 is not read at the start."""
        row = self.index[i].tolist()
        if not self._inside(*row):
            path = self.folder / self.manifest.index_name
            raise DamagedSample(f"{path}: sample {i} lies outside its shard; build the shards again")
        return row

    def _read(self, i: int, first: int) -> tuple:
        shard, *spans = self._place(i)
        try:
            *image, text, vector = self._members(shard, spans[first:])
            captions, vectors = self._captions(text.decode("utf-8")), self._vectors(vector)
        except (ValueError, OSError) as error:
            raise DamagedSample(f"{self._shard_path(shard)}: sample {i} is damaged ({error})") from None
        if len(captions) != len(vectors):
            raise DamagedSample(
                f"{self._shard_path(shard)}: sample {i} has {len(captions)} captions but {len(vectors)} embeddings"
            )
        return *image, captions, vectors

    def shard_path(self, i: int) -> Path:
        """The tar that holds sample `i`."""
        return self._shard_path(int(self.index[i, 0]))

    def _captions(self, text: str) -> tuple[str, ...]:
        if not self.manifest.whole_texts:
            return tuple(text.splitlines())
        whole = _json_string(text) if self.manifest.json_texts else text.removeprefix("\ufeff")
        return (" ".join(unicodedata.normalize("NFC", whole).split()),)

    def _vectors(self, data: bytes) -> Tensor:
        if self.manifest.vectors:
            array = np.frombuffer(data, "<f2").reshape(-1, self.manifest.encoder.dimension)
        else:
            array = read_npy(data, "f")
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused below
            vectors = torch.from_numpy((array[None] if array.ndim == 1 else array).astype(np.float32))
        expected = self.manifest.encoder.dimension
        if vectors.ndim != 2 or vectors.shape[1] != expected:
            raise ValueError(f"embedding of shape {tuple(array.shape)}, expected {expected}-d")
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        found = lengths.flatten().tolist()
        # A finite length tells of all its numbers that they are; of an infinite one the squares may only be too large.
        if not all(map(math.isfinite, found)) and not torch.isfinite(vectors).all():
            raise ValueError("embedding holds NaN or infinity")
        if min(found, default=1) < SHORTEST:
            raise ValueError("a zero vector as embedding, expected a direction")
        return vectors / lengths  # float16 storage is off unit length by 1e-3

    def _open_file(self, name: str) -> io.FileIO:
        """Closed when the last reader lets go of it, which may be after `_open` has forgotten it."""
        return (self.folder / name).open("rb", buffering=0)

    def _tar_name(self, shard: int) -> str:
        return self.manifest.shards[shard].name

    def _vectors_name(self, shard: int) -> str:
        return (self.manifest.vectors or self.manifest.shards)[shard].name

    def _members(self, shard: int, spans: list[int]) -> list[bytes]:
        tar = self._open(self._tar_name(shard))
        if not self.manifest.vectors:
            return _bytes(tar, spans)
        return _bytes(tar, spans[:-2]) + _bytes(self._open(self._vectors_name(shard)), spans[-2:])

    def _inside(self, shard: int, at: int, size: int, text_at: int, text: int, vector_at: int, vector: int) -> bool:
        """Whether the three spans lie in files that the manifest lists, each of a sane size."""
        if not 0 <= shard < len(self._ends):
            return False
        tar_end, vectors_end = self._ends[shard]
        return (
            0 < size <= MAX_MEMBER_BYTES and 0 <= at <= tar_end - size
            and 0 < text <= MAX_MEMBER_BYTES and 0 <= text_at <= tar_end - text
            and 0 < vector <= MAX_MEMBER_BYTES and 0 <= vector_at <= vectors_end - vector
        )  # fmt: skip

    def _shard_path(self, shard: int) -> Path:
        return self.folder / self._tar_name(shard)

    def _load_index(self) -> np.ndarray:
        path = self.folder / self.manifest.index_name
        try:
            # Not np.load, which also opens zip files; a mapped file costs no memory and refuses Python objects.
            index = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
        except Exception as error:  # of a hostile header: ValueError, SyntaxError, OverflowError, MemoryError, ...
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read ({reason}); build the shards again") from None
        if index.dtype != np.int64:
            raise UserError(f"{path} holds {index.dtype}, not 64-bit integers; build the shards again")
        if index.shape != (self.manifest.samples, len(INDEX_COLUMNS)):
            raise UserError(
                f"{path} has shape {index.shape}, the manifest lists {self.manifest.samples} samples; build again"
            )
        return index

    def _check_sizes(self) -> None:
        for file in self.manifest.files:
            path = self.folder / file.name
            if not path.is_file():
                raise UserError(
                    f"{path} is missing, but the manifest lists it; copy it again or build the shards again"
                )
            if (size := path.stat().st_size) != file.bytes:
                raise UserError(f"shard {path} has {size:,} bytes, its manifest says {file.bytes:,}: truncated?")
        for file in (*self.manifest.vectors, *self.manifest.image_vectors):
            check_sidecar(self.folder / file.name, self.manifest.encoder.dimension)


def _bytes(file: io.FileIO, spans: list[int]) -> list[bytes]:
    """What stands at each (offset, size), in one read where that brings little else. Raises ValueError at an end."""
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    start, end = min(spans[::2]), max(offset + size for offset, size in pairs)
    if end - start <= sum(spans[1::2]) + MAX_GAP:
        data = os.pread(file.fileno(), end - start, start)
        if len(data) == end - start:
            return [data[offset - start : offset - start + size] for offset, size in pairs]
    found = [os.pread(file.fileno(), size, offset) for offset, size in pairs]
    for data, (_, size) in zip(found, pairs, strict=True):
        if len(data) != size:
            raise ValueError(f"only {len(data)} of {size} bytes are left")
    return found


def _json_string(text: str) -> str:
    """Raises ValueError for what is no JSON string."""
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    if not isinstance(value, str):
        raise ValueError(f"the text is no JSON string: {text[:40]!r}")
    return value
