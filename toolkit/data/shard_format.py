"""What a shard folder holds: WebDataset tars, `manifest.json`, `index.npy`.

A sample is `KEY.jpg|png|webp`, `KEY.txt` (UTF-8, one caption a line), `KEY.npy` (float16 [E], or [K, E] for K captions)
and optionally `KEY.json`; its members stand side by side, so plain `webdataset.WebDataset` reads the tars.
The index is ours because random access makes sample order a pure function of (seed, epoch), which streaming cannot.
"""

import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np

from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

MANIFEST_NAME, INDEX_NAME = "manifest.json", "index.npy"
FORMAT_VERSION = 1
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
INDEX_COLUMNS = (
    "shard",
    "picture_offset",
    "picture_size",
    "text_offset",
    "text_size",
    "vector_offset",
    "vector_size",
)
MAX_MEMBER_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One tar of a shard folder as it was written."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a reader must know and may verify about a shard folder."""

    samples: int
    distinct_captions: int
    resolution: int
    """Width and height of every picture, in pixels."""
    encoder: EncoderIdentity
    shards: tuple[ShardFile, ...]
    index_sha256: str
    built_with: dict
    """The options of `shards.create`, for the record."""
    version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' hashes: equal exactly when the samples are."""
        return hashlib.sha256(" ".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Raises UserError if the folder is no shard folder or its manifest is damaged."""
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise UserError(f"no shard folder at {folder}; build one with python -m shards.create")
        if not path.is_file():
            raise UserError(f"{folder} holds no {MANIFEST_NAME}; build shards with python -m shards.create")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["version"] != FORMAT_VERSION:
                raise UserError(f"{path} has format version {fields['version']}, this toolkit reads {FORMAT_VERSION}")
            shards = tuple(ShardFile(**shard) for shard in fields["shards"])
            identity = EncoderIdentity.from_json(fields["encoder"])
            identity.vectors()  # ValueError if they do not fit the width
            return cls(**{**fields, "shards": shards, "encoder": identity})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); build the shards again") from None


def index_tar(path: Path, shard: int) -> np.ndarray:
    """One row of INDEX_COLUMNS per sample, int64 [N, 7], byte offsets into the tar.

    Strict where tarfile and webdataset are lenient (a damaged header would end a tar early without a word): every
    sample must be complete, its members adjacent, and the tar must end with its two zero blocks.
    """
    rows: list[list[int]] = []
    columns = {"txt": 3, "npy": 5} | dict.fromkeys(PICTURE_SUFFIXES, 1)
    last_key = None
    try:
        with tarfile.open(path, "r:") as tar:  # 'r:' and not 'r:*': a gzip bomb is not unpacked in passing
            for member in tar:
                key, _, suffix = Path(member.name).name.partition(".")
                if not member.isreg() or member.size > MAX_MEMBER_BYTES:
                    raise UserError(f"{path}: member {member.name} is no plain file of a sane size")
                if key != last_key:
                    rows.append([shard, 0, 0, 0, 0, 0, 0])
                    last_key = key
                if column := columns.get(suffix.lower()):
                    if rows[-1][column]:  # of two neighbours with one key only one sample would be left
                        raise UserError(f"{path}: {member.name} stands twice; sample names must differ")
                    rows[-1][column : column + 2] = member.offset_data, member.size
            end = tar.offset
    except tarfile.TarError as error:
        raise UserError(f"{path}: no readable tar ({error}); it is damaged or truncated") from None
    incomplete = sum(0 in row[1:] for row in rows)
    if incomplete or not rows:
        raise UserError(f"{path}: {incomplete} of {len(rows)} samples lack a picture, caption or embedding")
    with path.open("rb") as file:
        file.seek(end)
        if file.read(1024) != bytes(1024):  # tarfile takes a damaged header for the end and says nothing
            raise UserError(f"{path}: no end mark after sample {len(rows)}; it is damaged or truncated")
    return np.array(rows, dtype=np.int64)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
