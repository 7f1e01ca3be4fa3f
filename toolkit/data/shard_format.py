"""What a shard folder holds: WebDataset tars, `manifest.json`, `index.npy`.

A sample is `KEY.jpg|png|webp` or `KEY.image.npy` (uint8 [R, R, 3]), `KEY.txt` (UTF-8, one caption a line), `KEY.npy`
(float16 [K, E] for K captions, or [E]) and optionally `KEY.json`; its members stand side by side, so plain
`webdataset.WebDataset` reads the tars. Embeddings may instead stand beside the tars, in files of float16 rows, so that
tars of other makers are read as they are.
The index is ours because random access makes sample order a pure function of (seed, epoch), which streaming cannot.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from toolkit.data.addresses import what_to_pass
from toolkit.data.tar_index import ShardFile
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

MANIFEST_NAME, INDEX_NAME = "manifest.json", "index.npy"
FORMAT_VERSION = 2
READABLE = (1, 2)
"""Version 1 had no sidecars, no raw images and none fitted on reading."""
RESIZE_MODES = ("crop", "pad", "stretch")
SIDECARS = ("vectors", "image_vectors")
MAX_MANIFEST_BYTES = 256 * 2**20


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
    """Width and height of every image as it is read, in pixels."""
    encoder: EncoderIdentity
    shards: tuple[ShardFile, ...]
    index_sha256: str
    built_with: dict
    """The options of the command that made the folder, for the record."""
    fit: str = ""
    """'': images are stored at `resolution`; one of RESIZE_MODES: they are of any size and fitted when read."""
    whole_texts: bool = False
    """Whether a text is one caption, whatever its lines; else each line is one."""
    json_texts: bool = False
    """Whether a whole text is a JSON string, as it stands in a KEY.json."""
    vectors: tuple[Sidecar, ...] = ()
    """Per shard the file of its text embeddings, a row per caption; none: they stand in the tars."""
    image_vectors: tuple[Sidecar, ...] = ()
    """Per shard the file of its image embeddings, a row per sample; usually none."""
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
