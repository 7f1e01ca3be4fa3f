"""Where the samples of a tar stand, by WebDataset's rules read strictly. Imports little: workers start with it."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "image.npy", "picture.npy")
INDEX_COLUMNS = (
    "shard",
    "image_offset",
    "image_size",
    "text_offset",
    "text_size",
    "vector_offset",
    "vector_size",
)
MAX_MEMBER_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 2**20
"""Of one tar header with its extensions (long names, pax records)."""
CODE_SUFFIXES = ("pyd", "pkl", "pickle", "pth", "pt")
"""Members that other WebDataset readers unpickle, which runs whatever code they hold."""


@dataclass(frozen=True)
class ShardFile:
    """One tar of a shard folder as it was written."""

    name: str
    samples: int
    bytes: int
    sha256: str


class _TarReader(io.FileIO):
    """A file whose reads are as small as headers are: tarfile would read whatever length a header claims."""

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size  # both mean all
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def index_tar(path: Path, shard: int) -> np.ndarray:
    """`list_tar` where every sample must have image, caption and embedding: int64 [N, 7]."""
    _, rows = list_tar(path, shard)
    incomplete = int((rows[:, 1:] == 0).any(axis=1).sum())
    if incomplete:
        raise UserError(f"{path}: {incomplete} of {len(rows)} samples lack an image, caption or embedding")
    return rows


def list_tar(path: Path, shard: int) -> tuple[list[str], np.ndarray]:
    """The samples' keys and one row of INDEX_COLUMNS each, int64 [N, 7]: byte offsets into the tar, 0 for what lacks.

    Strict where tarfile and webdataset are lenient (a damaged header would end a tar early without a word): every
    sample must stand under a key of its own, its members adjacent plain files, and after the end mark nothing may
    follow. Reads headers only. Raises UserError naming the tar for anything else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        with _TarReader(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:  # 'r:': no gzip bomb is unpacked
            keys, rows = _rows(path, shard, tar)
            end = tar.offset
    except UserError:
        raise
    except Exception as error:  # tarfile: TarError; on hostile headers ValueError, IndexError, RecursionError, ...
        raise UserError(
            f"{path}: no readable tar ({' '.join(str(error).split())}); it is damaged or truncated"
        ) from None
    if not rows:
        raise UserError(f"{path}: no sample in it; it is damaged or truncated")
    if not _ends_at(path, end):
        raise UserError(f"{path}: no end mark after sample {len(rows)}; it is damaged or truncated")
    return keys, np.array(rows, dtype=np.int64)


def _rows(path: Path, shard: int, tar: tarfile.TarFile) -> tuple[list[str], list[list[int]]]:
    rows: list[list[int]] = []
    columns = {"txt": 3, "npy": 5} | dict.fromkeys(IMAGE_SUFFIXES, 1)
    keys: dict[str, None] = {}  # not a set: it keeps the order
    last_key = None
    for member in tar:
        key, suffix = _split(path, member)
        if key != last_key:
            if key in keys:
                raise UserError(f"{path}: sample {key!r} stands twice or in pieces; sample names must differ")
            rows.append([shard, 0, 0, 0, 0, 0, 0])
            keys[key] = None
            last_key = key
        if column := columns.get(suffix):
            if rows[-1][column]:  # of two neighbours with one key only one sample would be left
                raise UserError(f"{path}: {member.name} stands twice; sample names must differ")
            rows[-1][column : column + 2] = member.offset_data, member.size
    return list(keys), rows


def _split(path: Path, member: tarfile.TarInfo) -> tuple[str, str]:
    """(key with its folder, suffix in lower case) as webdataset splits names. Raises UserError for hostile members."""
    name = member.name
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not plain or not 0 <= member.size <= MAX_MEMBER_BYTES:
        raise UserError(f"{path}: member {name!r} is no plain file of a sane size")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or not name.isprintable():
        raise UserError(f"{path}: member {name!r} points out of the shard or is no readable name")
    folder, _, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    if suffix.lower().rpartition(".")[2] in CODE_SUFFIXES:
        raise UserError(f"{path}: member {name!r} may hold code, which other readers would run; remove it")
    return f"{folder}/{key}" if folder else key, suffix.lower()


def _ends_at(path: Path, end: int) -> bool:
    """Whether the end mark (two zero blocks) stands there and nothing but zeros after it.

    tarfile takes a zeroed header, and any damaged one, for the end and says nothing.
    """
    with path.open("rb") as file:
        file.seek(end)
        if file.read(1024) != bytes(1024):
            return False
        while block := file.read(2**20):
            if block.strip(b"\0"):
                return False
    return True
