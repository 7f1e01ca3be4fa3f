"""What has become of a tar: written when its embeddings stand beside it, so that a later command goes on from there.

`adopted/NAME.json` is the record, `adopted/NAME.npy` int64 [N, 8] the samples' rows of the index (INDEX_COLUMNS, shard
0) and 64 bits that tell their captions apart.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shards.embedding.staging import Staging
from shards.problems import Problem
from toolkit.data.shard_format import Sidecar
from toolkit.data.tar_index import ShardFile
from toolkit.durable import file_sha256
from toolkit.errors import UserError

FOLDER = "adopted"


@dataclass(frozen=True)
class Record:
    """A tar that is done."""

    tar: ShardFile
    """`samples`: those in the index; 0 if none can be used."""
    modified: int
    """Nanoseconds; another time alone is only a reason to look at the content."""
    vectors: Sidecar | None
    """None without samples."""
    encoder_sha256: str
    """Of the encoder's parameters, '' if nobody knows."""
    settings: dict
    """The options that its content depends on."""
    skipped: list[Problem]

    def save(self, folder: Path, staging: Staging) -> None:
        path = folder / FOLDER / f"{_stem(self.tar.name)}.json"
        staging.write_bytes(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path, tar: str) -> "Record | None":
        """None if the tar is still to be done, or what was made of it is gone."""
        try:
            fields = json.loads((folder / FOLDER / f"{_stem(tar)}.json").read_bytes())
            vectors = Sidecar(**fields["vectors"]) if fields["vectors"] else None
            if vectors and (folder / vectors.name).stat().st_size != vectors.bytes:
                return None
            if vectors and not (folder / FOLDER / f"{_stem(tar)}.npy").is_file():
                return None
            read = {"tar": ShardFile(**fields["tar"]), "vectors": vectors}
            return cls(**fields | read | {"skipped": [Problem(*problem) for problem in fields["skipped"]]})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check(self, folder: Path, settings: dict) -> None:
        """UserError if the tar is another than it was, or the options are."""
        path = folder / self.tar.name
        remedy = "add --overwrite to adopt it anew"
        for name, value in settings.items():
            if self.settings.get(name) != value:
                raise UserError(
                    f"{path} was adopted with --{name} {self.settings.get(name)!r}, not {value!r}; {remedy}"
                )
        status = path.stat()
        changed = status.st_size != self.tar.bytes
        if changed or (status.st_mtime_ns != self.modified and file_sha256(path) != self.tar.sha256):
            raise UserError(f"{path} has changed since it was adopted; {remedy}")


def save_rows(folder: Path, tar: str, rows: np.ndarray, staging: Staging) -> None:
    with staging.write(folder / FOLDER / f"{_stem(tar)}.npy") as file:
        np.save(file, rows)


def load_rows(folder: Path, record: Record) -> np.ndarray:
    """int64 [N, 8]. Raises UserError if the file is damaged."""
    path = folder / FOLDER / f"{_stem(record.tar.name)}.npy"
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and run again") from None
    if rows.dtype != np.int64 or rows.shape != (record.tar.samples, 8):
        raise UserError(f"{path} has {rows.dtype} {list(rows.shape)}, not {record.tar.samples} rows; delete it")
    return rows


def recorded_tars(folder: Path) -> list[str]:
    return sorted(f"{path.stem}.tar" for path in (folder / FOLDER).glob("*.json"))


def vectors_name(tar: str) -> str:
    """'00000.tar' -> '00000.text.npy'."""
    return f"{_stem(tar)}.text.npy"


def _stem(tar: str) -> str:
    return tar.removesuffix(".tar")
