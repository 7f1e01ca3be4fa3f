"""Random access to the samples of a shard folder: sample i is three reads at known offsets."""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.data.npy import read_npy
from toolkit.data.shard_format import INDEX_COLUMNS, INDEX_NAME, MAX_MEMBER_BYTES, Manifest
from toolkit.errors import UserError

MAX_OPEN = 500
"""Files kept open at a time; a process may usually have 1,024."""


class DamagedSample(UserError):
    """One sample that cannot be used; the rest of the set may be sound."""


class Sample(NamedTuple):
    """One picture as it stands in the shard, with its captions."""

    picture: bytes
    """A JPEG, PNG or WebP file, or a .npy of uint8 [R, R, 3]."""
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
        shard, *spans = (int(value) for value in self.index[i])
        if not self._inside(shard, spans):  # asked of each sample: an index of 1e8 is not read at the start
            raise DamagedSample(
                f"{self.folder / INDEX_NAME}: sample {i} lies outside its shard; build the shards again"
            )
        try:
            tar, vectors_file = self._open(self._tar_name(shard)), self._open(self._vectors_name(shard))
            picture, text = _bytes(tar, *spans[:2]), _bytes(tar, *spans[2:4])
            captions = self._captions(text.decode("utf-8"))
            vectors = self._vectors(_bytes(vectors_file, *spans[4:]))
        except (ValueError, OSError) as error:
            raise DamagedSample(f"{self._shard_path(shard)}: sample {i} is damaged ({error})") from None
        if len(captions) != len(vectors):
            raise DamagedSample(
                f"{self._shard_path(shard)}: sample {i} has {len(captions)} captions but {len(vectors)} embeddings"
            )
        return Sample(picture, captions, vectors)

    def shard_path(self, i: int) -> Path:
        """The tar that holds sample `i`."""
        return self._shard_path(int(self.index[i, 0]))

    def _captions(self, text: str) -> tuple[str, ...]:
        return (" ".join(text.split()),) if self.manifest.whole_texts else tuple(text.splitlines())

    def _vectors(self, data: bytes) -> Tensor:
        if self.manifest.vectors:
            array = np.frombuffer(data, "<f2").reshape(-1, self.manifest.encoder.dimension)
        else:
            array = read_npy(data, "f")
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused below
            vectors = torch.from_numpy(np.atleast_2d(array).astype(np.float32))
        expected = self.manifest.encoder.dimension
        if vectors.ndim != 2 or vectors.shape[1] != expected:
            raise ValueError(f"embedding of shape {tuple(array.shape)}, expected {expected}-d")
        if not torch.isfinite(vectors).all():
            raise ValueError("embedding holds NaN or infinity")
        return torch.nn.functional.normalize(vectors, dim=1)  # float16 storage is off unit length by 1e-3

    def _open_file(self, name: str) -> io.FileIO:
        """Closed when the last reader lets go of it, which may be after `_open` has forgotten it."""
        return (self.folder / name).open("rb", buffering=0)

    def _tar_name(self, shard: int) -> str:
        return self.manifest.shards[shard].name

    def _vectors_name(self, shard: int) -> str:
        return (self.manifest.vectors or self.manifest.shards)[shard].name

    def _inside(self, shard: int, spans: list[int]) -> bool:
        """Whether the three spans lie in files that the manifest lists, each of a sane size."""
        if not 0 <= shard < len(self.manifest.shards):
            return False
        end = self.manifest.shards[shard].bytes
        ends = (end, end, (self.manifest.vectors or self.manifest.shards)[shard].bytes)
        return all(
            0 <= offset <= end - size and 0 < size <= MAX_MEMBER_BYTES
            for end, offset, size in zip(ends, spans[::2], spans[1::2], strict=True)
        )

    def _shard_path(self, shard: int) -> Path:
        return self.folder / self._tar_name(shard)

    def _load_index(self) -> np.ndarray:
        path = self.folder / INDEX_NAME
        try:
            # Not np.load, which also opens zip files; a mapped file costs no memory and refuses Python objects.
            index = np.lib.format.open_memmap(path, mode="r")
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
                raise UserError(f"{path} is missing, but the manifest lists it; copy it again or build the shards again")
            if (size := path.stat().st_size) != file.bytes:
                raise UserError(f"shard {path} has {size:,} bytes, its manifest says {file.bytes:,}: truncated?")


def _bytes(file: io.FileIO, offset: int, size: int) -> bytes:
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ValueError(f"only {len(data)} of {size} bytes are left")
    return data
