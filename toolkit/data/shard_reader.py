"""Random access to the samples of a shard folder: sample i is three reads at known offsets."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.data.shard_format import INDEX_COLUMNS, INDEX_NAME, Manifest
from toolkit.errors import UserError


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
        self._index = self._load_index()
        self._check_sizes()
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # file descriptors mean nothing in another process

    def read(self, i: int) -> Sample:
        """Sample `i` in [0, len). Raises UserError naming shard and sample if its bytes are damaged."""
        shard, *spans = (int(value) for value in self._index[i])
        try:
            picture, text, vector = (self._bytes(shard, *spans[k : k + 2]) for k in (0, 2, 4))
            captions = tuple(text.decode("utf-8").splitlines())
            vectors = self._vectors(vector)
        except (ValueError, OSError) as error:
            raise UserError(f"{self._shard_path(shard)}: sample {i} is damaged ({error})") from None
        if len(captions) != len(vectors):
            raise UserError(
                f"{self._shard_path(shard)}: sample {i} has {len(captions)} captions but {len(vectors)} embeddings"
            )
        return Sample(picture, captions, vectors)

    def _vectors(self, data: bytes) -> Tensor:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
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
        return os.pread(self._files[shard], size, offset)

    def _shard_path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].name

    def _load_index(self) -> np.ndarray:
        path = self.folder / INDEX_NAME
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}); build the shards again") from None
        if index.shape != (self.manifest.samples, len(INDEX_COLUMNS)):
            raise UserError(f"{path} lists {len(index)} samples, the manifest {self.manifest.samples}; build again")
        return index

    def _check_sizes(self) -> None:
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            if not path.is_file():
                raise UserError(f"shard {path} is missing; the manifest lists it with {shard.samples} samples")
            if (size := path.stat().st_size) != shard.bytes:
                raise UserError(f"shard {path} has {size:,} bytes, its manifest says {shard.bytes:,}: truncated?")
