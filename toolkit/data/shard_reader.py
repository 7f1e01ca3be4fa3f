"""Random access to the samples of a shard folder: sample i is three reads at known offsets."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.data.shard_format import INDEX_COLUMNS, INDEX_NAME, MAX_MEMBER_BYTES, Manifest
from toolkit.errors import UserError


class DamagedSample(UserError):
    """One sample that cannot be used; the rest of the set may be sound."""


class Sample(NamedTuple):
    """One picture as it stands in the shard, with its captions."""

    picture: bytes
    """A JPEG, PNG or WebP file."""
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
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # file descriptors mean nothing in another process

    def read(self, i: int) -> Sample:
        """Sample `i` in [0, len). Raises DamagedSample naming shard and sample if its bytes are damaged."""
        shard, *spans = (int(value) for value in self.index[i])
        if not self._inside(shard, spans):  # asked of each sample: an index of 1e8 is not read at the start
            raise DamagedSample(
                f"{self.folder / INDEX_NAME}: sample {i} lies outside its shard; build the shards again"
            )
        try:
            picture, text, vector = (self._bytes(shard, *spans[k : k + 2]) for k in (0, 2, 4))
            captions = tuple(text.decode("utf-8").splitlines())
            vectors = self._vectors(vector)
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

    def _vectors(self, data: bytes) -> Tensor:
        array = _array(data)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused below
            vectors = torch.from_numpy(np.atleast_2d(array).astype(np.float32))
        expected = self.manifest.encoder.dimension
        if vectors.ndim != 2 or vectors.shape[1] != expected:
            raise ValueError(f"embedding of shape {tuple(array.shape)}, expected {expected}-d")
        if not torch.isfinite(vectors).all():
            raise ValueError("embedding holds NaN or infinity")
        return torch.nn.functional.normalize(vectors, dim=1)  # float16 storage is off unit length by 1e-3

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            self._files[shard] = os.open(self._shard_path(shard), os.O_RDONLY)
        data = os.pread(self._files[shard], size, offset)
        if len(data) != size:
            raise ValueError(f"only {len(data)} of {size} bytes are left")
        return data

    def _inside(self, shard: int, spans: list[int]) -> bool:
        """Whether the three spans lie in a shard that the manifest lists, each of a sane size."""
        if not 0 <= shard < len(self.manifest.shards):
            return False
        end, offsets, sizes = self.manifest.shards[shard].bytes, spans[::2], spans[1::2]
        return all(
            0 <= offset <= end - size and 0 < size <= MAX_MEMBER_BYTES
            for offset, size in zip(offsets, sizes, strict=True)
        )

    def _shard_path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].name

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
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            if not path.is_file():
                raise UserError(f"shard {path} is missing; the manifest lists it with {shard.samples} samples")
            if (size := path.stat().st_size) != shard.bytes:
                raise UserError(f"shard {path} has {size:,} bytes, its manifest says {shard.bytes:,}: truncated?")


def _array(data: bytes) -> np.ndarray:
    """The real numbers of a .npy file. Raises ValueError for anything else.

    numpy's own reader makes room for whatever shape the header claims before it looks for the bytes.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = read_header[version](stream)
    except Exception as error:  # of a hostile header: SyntaxError, KeyError, RecursionError, TokenError, ...
        raise ValueError(f"no .npy file: {' '.join(str(error).split())[:100]}") from None
    if dtype.kind != "f" or min(shape, default=1) < 0:
        raise ValueError(f"embedding of type {str(dtype)[:40]!r}, shape {str(shape)[:40]}: expected real numbers")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if by_columns else "C")
