"""What a shard folder holds: WebDataset tars, `manifest.json`, `index.npy`.

A sample is `KEY.jpg|png|webp` or `KEY.picture.npy` (uint8 [R, R, 3]), `KEY.txt` (UTF-8, one caption a line), `KEY.npy`
(float16 [K, E] for K captions, or [E]) and optionally `KEY.json`; its members stand side by side, so plain
`webdataset.WebDataset` reads the tars. Embeddings may instead stand beside the tars, in files of float16 rows, so that
tars of other makers are read as they are.
The index is ours because random access makes sample order a pure function of (seed, epoch), which streaming cannot.
"""

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np

from toolkit.data.addresses import what_to_pass
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

MANIFEST_NAME, INDEX_NAME = "manifest.json", "index.npy"
FORMAT_VERSION = 2
READABLE = (1, 2)
"""Version 1 had no sidecars, no raw pictures and none fitted on reading."""
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "picture.npy")
RESIZE_MODES = ("crop", "pad", "stretch")
INDEX_COLUMNS = (
    "shard",
    "picture_offset",
    "picture_size",
    "text_offset",
    "text_size",
    "vector_offset",
    "vector_size",
)
SIDECARS = ("vectors", "image_vectors")
MAX_MEMBER_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 2**20
"""Of one tar header with its extensions (long names, pax records)."""
MAX_MANIFEST_BYTES = 256 * 2**20
CODE_SUFFIXES = ("pyd", "pkl", "pickle", "pth", "pt")
"""Members that other WebDataset readers unpickle, which runs whatever code they hold."""


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One tar of a shard folder as it was written."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """Embeddings of one tar's samples, in a file of their own: a .npy of float16 [rows, E], unit length."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a reader must know and may verify about a shard folder."""

    samples: int
    distinct_captions: int
    resolution: int
    """Width and height of every picture as it is read, in pixels."""
    encoder: EncoderIdentity
    shards: tuple[ShardFile, ...]
    index_sha256: str
    built_with: dict
    """The options of the command that made the folder, for the record."""
    fit: str = ""
    """'': pictures are stored at `resolution`; one of RESIZE_MODES: they are of any size and fitted when read."""
    whole_texts: bool = False
    """Whether a text is one caption, whatever its lines; else each line is one."""
    json_texts: bool = False
    """Whether a whole text is a JSON string, as it stands in a KEY.json."""
    vectors: tuple[Sidecar, ...] = ()
    """Per shard the file of its text embeddings, a row per caption; none: they stand in the tars."""
    image_vectors: tuple[Sidecar, ...] = ()
    """Per shard the file of its picture embeddings, a row per sample; usually none."""
    index_name: str = INDEX_NAME
    """Another name where embeddings were put in place later: the old index counts until the manifest is replaced."""
    version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all that a sample is read from: equal exactly when the samples are."""
        hashes = [shard.sha256 for shard in self.shards] + [sidecar.sha256 for sidecar in self.vectors]
        if self.vectors or self.fit or self.whole_texts:  # then the index may leave samples of a tar out
            hashes += [self.index_sha256, self.fit, str(self.whole_texts)] + ["json"] * self.json_texts
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    @property
    def files(self) -> tuple["ShardFile | Sidecar", ...]:
        """All files beside manifest and index, that is, all that has a name, a size and a hash here."""
        return (*self.shards, *self.vectors, *self.image_vectors)

    def save(self, folder: Path) -> None:
        (folder / MANIFEST_NAME).write_bytes(self.to_json())

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Raises UserError if the folder is no shard folder or its manifest is damaged."""
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise UserError(f"no shard folder at {folder}; {what_to_pass(str(folder))}")
        if not path.is_file():
            raise UserError(f"{folder} holds no {MANIFEST_NAME}; build shards with python -m shards.create")
        with path.open("rb") as file:
            return cls.parse(file.read(min(path.stat().st_size, MAX_MANIFEST_BYTES + 1)), path)

    @classmethod
    def parse(cls, data: bytes, path: Path | str) -> "Manifest":
        """From the bytes of its file, which stand at `path`. Raises UserError if they are damaged."""
        try:
            if len(data) > MAX_MANIFEST_BYTES:
                raise ValueError(f"larger than {MAX_MANIFEST_BYTES:,} bytes")
            fields = json.loads(data.decode("utf-8"))
            if fields["version"] not in READABLE or type(fields["version"]) is not int:
                version = repr(fields["version"])[:80]
                raise UserError(f"{path} has format version {version}, this toolkit reads {FORMAT_VERSION} and older")
            read = {
                "shards": tuple(ShardFile(**shard) for shard in fields["shards"]),
                "encoder": EncoderIdentity.from_json(fields["encoder"]),
                **{name: tuple(Sidecar(**file) for file in fields.get(name, ())) for name in SIDECARS},
            }
            found = cls(**{**fields, **read})
            found._check()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{path} is damaged ({reason}); build the shards again") from None
        return found

    def _check(self) -> None:
        """Types and ranges, so that nothing read later trusts a hostile file. Raises ValueError."""
        counts = {"samples": self.samples, "distinct_captions": self.distinct_captions, "resolution": self.resolution}
        counts |= {f"samples of {shard.name!r}": shard.samples for shard in self.shards}
        files = self.files
        for file in files:
            counts[f"bytes of {file.name!r}"] = file.bytes
            _check_name(file.name)
        if self.index_name != INDEX_NAME:
            _check_name(self.index_name)
        for what, count in counts.items():
            if type(count) is not int or not 0 < count < 2**62:
                raise ValueError(f"{what} is {str(count)[:80]!r}")
        if len({self.index_name, *(file.name for file in files)}) != len(files) + 1:
            raise ValueError("a file is listed twice")
        if any(len(getattr(self, name)) not in (0, len(self.shards)) for name in SIDECARS):
            raise ValueError("not every shard has its file of embeddings")
        if self.fit not in ("", *RESIZE_MODES) or {type(self.whole_texts), type(self.json_texts)} != {bool}:
            raise ValueError(f"fit is {str(self.fit)[:80]!r}, whole_texts {str(self.whole_texts)[:80]!r}")
        texts = (self.index_sha256, self.encoder.name, *self.encoder.probe_captions, *(file.sha256 for file in files))
        if not all(isinstance(text, str) for text in texts) or not self.encoder.name.isprintable():
            raise ValueError("a name or hash is no text")
        if type(self.encoder.dimension) is not int or self.encoder.dimension < 1:
            raise ValueError(f"encoder dimension {str(self.encoder.dimension)[:80]!r}")
        self.encoder.vectors()  # ValueError if they do not fit the width


def _check_name(name: object) -> None:
    """Only names of files beside the manifest: no other place can be read through it. Raises ValueError."""
    plain = isinstance(name, str) and re.fullmatch(r"[^/\\]+", name) and name.isprintable()
    if not plain or name in (".", "..", MANIFEST_NAME, INDEX_NAME):
        raise ValueError(f"shard name {str(name)[:80]!r}")


class _TarReader(io.FileIO):
    """A file whose reads are as small as headers are: tarfile would read whatever length a header claims."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def index_tar(path: Path, shard: int) -> np.ndarray:
    """`list_tar` where every sample must have picture, caption and embedding: int64 [N, 7]."""
    _, rows = list_tar(path, shard)
    incomplete = int((rows[:, 1:] == 0).any(axis=1).sum())
    if incomplete:
        raise UserError(f"{path}: {incomplete} of {len(rows)} samples lack a picture, caption or embedding")
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
    columns = {"txt": 3, "npy": 5} | dict.fromkeys(PICTURE_SUFFIXES, 1)
    keys, last_key = {}, None  # a dict, for it keeps the order
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


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
