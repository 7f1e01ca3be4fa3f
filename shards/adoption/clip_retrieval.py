"""Text embeddings as clip-retrieval writes them (https://github.com/rom1504/clip-retrieval, clip_inference/writer.py).

`text_emb/text_emb_N.npy` (float16 or float32 [rows, E]) beside `metadata/metadata_N.parquet`, whose row i names the
sample (`image_path`, or `key` where no images were embedded) and the `caption` of row i; or all in one folder.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from shards.caption_folder.collection import clean_caption
from shards.caption_folder.parquet_tables import ParquetTable
from shards.caption_folder.samples import Sample
from shards.embedding_sources import PROBES, EmbeddingSource
from shards.problems import Problem
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import check_open_clip_name
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

KEY_COLUMNS = ("image_path", "key")
CAPTION_COLUMN = "caption"
SHORTEST = 1e-6
"""Length of a vector below which it has no direction."""
PROBED = 1000
"""Rows looked at for probes."""


def read_clip_retrieval(folder: Path, encoder: str, weights: Path | None) -> EmbeddingSource:
    """`encoder`: who made them, for the files do not say.

    Raises UserError if the folder is missing, is no output of clip-retrieval, or its files do not fit each other.
    """
    if not encoder:
        raise UserError(f"{folder} does not say which encoder made it; name it with --encoder")
    if encoder != HashingEncoder.name:
        check_open_clip_name(encoder, weights)  # the name goes into every checkpoint, and only there would be noticed
    table = VectorTable(folder)
    return EmbeddingSource(table.identity(encoder), table.vectors)


class VectorTable:
    """All rows of all files, found by key and caption: 24 bytes of memory a row, the vectors stay on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: list[np.ndarray] = []
        self._examples: list[tuple[int, str]] = []
        """Row and caption."""
        pairs, keys = [], []
        for vectors, metadata in _file_pairs(folder):
            self._arrays.append(_open(vectors))
            file_pairs, file_keys = self._digests(metadata, len(self._arrays[-1]), vectors)
            pairs.append(file_pairs)
            keys.append(file_keys)
        self.dimension = self._arrays[0].shape[1]
        for array in self._arrays:
            if array.shape[1] != self.dimension:
                raise UserError(f"{folder} holds vectors of {self.dimension} and of {array.shape[1]} numbers")
        self._starts = np.cumsum([0, *(len(array) for array in self._arrays)])
        unsorted = np.concatenate(pairs)
        self._rows = np.argsort(unsorted, kind="stable")
        self._pairs, self._keys = unsorted[self._rows], np.sort(np.concatenate(keys))

    def vectors(self, samples: list[Sample]) -> "list[np.ndarray | Problem]":
        """For each sample, whose one caption must be the row's too, float32 [1, E], unit length; or what is wrong."""
        return [self._vector(sample) for sample in samples]

    def identity(self, encoder: str) -> EncoderIdentity:
        """Some of the table's own pairs are the probes. UserError if none of the first can be used."""
        probes: dict[str, np.ndarray] = {}
        for row, caption in self._examples:
            if len(probes) < PROBES and not _fault(vector := self._read(row)):
                probes.setdefault(caption, vector)
        if not probes:
            raise UserError(f"{self.folder} holds no usable embedding with a caption in its first {PROBED:,} rows")
        vectors = np.stack([vector / np.linalg.norm(vector) for vector in probes.values()]).astype(np.float32)
        return EncoderIdentity.from_vectors(encoder, list(probes), torch.from_numpy(vectors))

    def _vector(self, sample: Sample) -> "np.ndarray | Problem":
        place, (caption,) = str(sample.image), sample.captions
        at = _find(self._pairs, _digest(sample.key, caption))
        if at is None:
            if _find(self._keys, _digest(sample.key)) is None:
                return Problem(place, "missing embedding")
            return Problem(place, "stale embedding: made of another caption")
        vector = self._read(int(self._rows[at]))
        if fault := _fault(vector):
            return Problem(place, f"wrong embedding: {fault}")
        return (vector / np.linalg.norm(vector)).astype(np.float32)[None]

    def _read(self, row: int) -> np.ndarray:
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._arrays[file][row - self._starts[file]].astype(np.float64)

    def _digests(self, metadata: Path, rows: int, vectors: Path) -> tuple[np.ndarray, np.ndarray]:
        """uint64 [rows] of key and caption, and of the key alone; 0 for a row that cannot be used."""
        table, first = ParquetTable(metadata), sum(len(array) for array in self._arrays[:-1])
        column = next((name for name in KEY_COLUMNS if name in table.columns), None)
        if column is None or CAPTION_COLUMN not in table.columns:
            expected = f"{' or '.join(KEY_COLUMNS)}, and {CAPTION_COLUMN}"
            raise UserError(f"{metadata} has the columns {', '.join(table.columns)[:200]}; needed are {expected}")
        pairs, keys, count = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64), 0
        for count, fields in table.rows({column, CAPTION_COLUMN}):
            if count > rows or isinstance(fields, str) or not isinstance(fields[column], str):
                continue
            keys[count - 1] = _digest(fields[column])
            try:
                caption = clean_caption(fields[CAPTION_COLUMN])
            except UserError:
                continue
            pairs[count - 1] = _digest(fields[column], caption)
            if len(self._examples) < PROBED:
                self._examples.append((first + count - 1, caption))
        if count != rows:
            raise UserError(f"{metadata} has {count:,} rows, {vectors.name} {rows:,}; they must be of one run")
        return pairs, keys


def _file_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(vectors, metadata) by their common number. Raises UserError if there are none, or one lacks its other."""
    nested = (folder / "text_emb").is_dir()
    places = {"text_emb": (folder / "text_emb" if nested else folder, "npy")}
    places["metadata"] = (folder / "metadata" if nested else folder, "parquet")
    found = {}
    for name, (place, suffix) in places.items():
        paths = sorted(place.iterdir()) if place.is_dir() else []
        matches = ((re.fullmatch(rf"{name}_(\d{{1,9}})\.{suffix}", path.name), path) for path in paths)
        found[name] = {int(match[1]): path for match, path in matches if match}
    vectors, metadata = found["text_emb"], found["metadata"]
    if not vectors:
        raise UserError(f"{folder} holds no text_emb_0.npy, in text_emb/ or itself; is it of clip-retrieval inference?")
    if lone := sorted(vectors.keys() ^ metadata.keys()):
        path = (vectors | metadata)[lone[0]]
        raise UserError(f"{path} has no {'metadata' if lone[0] in vectors else 'text_emb'} file of its number")
    return [(vectors[number], metadata[number]) for number in sorted(vectors)]


def _open(path: Path) -> np.ndarray:
    """[rows, E] of floating point, mapped. Never unpickles."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # of a hostile header: ValueError, SyntaxError, OverflowError, MemoryError, ...
        raise UserError(f"{path}: no readable .npy ({' '.join(str(error).split())[:100]})") from None
    if array.dtype.kind != "f" or array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected floating point [rows, width]")
    return array


def _fault(vector: np.ndarray) -> str:
    if not np.isfinite(vector).all():
        return "NaN or infinity, expected finite numbers"
    return "a zero vector, expected a direction" if np.linalg.norm(vector) < SHORTEST else ""


def _digest(*texts: str) -> np.uint64:
    """64 bits: of 1e8 rows two meet with a chance of 3e-4, and then one vector is another caption's."""
    data = "\0".join(texts).encode("utf-8", "surrogatepass")
    return np.uint64(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1)


def _find(ordered: np.ndarray, value: np.uint64) -> int | None:
    at = int(np.searchsorted(ordered, value))
    return at if at < len(ordered) and ordered[at] == value else None
