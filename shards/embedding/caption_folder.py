"""The captions of a folder -> KEY.npy each, by any number of processes with the same bytes.

The distinct captions, sorted by length, are cut into units; a process computes its share of them and stores each whole.
Whoever finds all of them there writes the KEY.npy and, last, the record: until then nothing counts as embedded, so that
every process, also one that starts late or after a kill, sees the same units.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from shards.embedding.caption_encoder import CaptionEncoder, by_length
from shards.embedding.staging import Staging
from shards.embedding_folder import IDENTITY_NAME, RECORD_NAME, check_origin, identity_json, load_record, record_line
from shards.share import Share

Captions = dict[str, tuple[str, ...]]


class _Unit(NamedTuple):
    path: Path
    """float32 [len(captions), E], no header."""
    captions: list[str]

    def finished(self, dimension: int) -> bool:
        return self.path.is_file() and self.path.stat().st_size == len(self.captions) * dimension * 4


def embed_folder(folder: Path, captions: Captions, encoder: CaptionEncoder, batch: int, share: Share) -> int | None:
    """Returns how many samples were missing; None if other processes have not yet done their units.

    Raises UserError if the folder is another encoder's; OSError.
    """
    identity, staging = encoder.identity, Staging(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_origin(folder, identity)
    if not (folder / IDENTITY_NAME).is_file():
        staging.write_bytes(folder / IDENTITY_NAME, identity_json(identity))
    missing = _missing(folder, captions)
    units = _units(staging, missing, encoder, batch)
    mine = [unit for unit in share.mine(units) if not unit.finished(identity.dimension)]
    total = sum(len(unit.captions) for unit in mine)
    with tqdm(total=total, unit=" captions", disable=True if share.index else None) as bar:
        for unit in mine:
            staging.write_bytes(unit.path, encoder.encode(unit.captions).tobytes())
            bar.update(len(unit.captions))
    if not all(unit.finished(identity.dimension) for unit in units):
        return _missing_after_all(folder, captions, len(missing))
    try:
        _merge(folder, missing, captions, units, identity.dimension, staging)
    except FileNotFoundError:  # another process has found all units as well, and has removed them when it was done
        return _missing_after_all(folder, captions, len(missing))
    return len(missing)


def _missing(folder: Path, captions: Captions) -> Captions:
    record = load_record(folder)
    return {k: c for k, c in captions.items() if record.get(k) != c or not (folder / f"{k}.npy").is_file()}


def _missing_after_all(folder: Path, captions: Captions, count: int) -> int | None:
    return None if _missing(folder, captions) else count


def _units(staging: Staging, missing: Captions, encoder: CaptionEncoder, batch: int) -> list[_Unit]:
    """Named by captions and encoder: what a run with other ones left behind is not taken for them."""
    distinct = by_length([caption for of_one in missing.values() for caption in of_one])
    about = encoder.identity
    found = []
    for start in range(0, len(distinct), batch):
        captions = distinct[start : start + batch]
        text = json.dumps([about.name, about.weights_sha256, about.precision, captions])
        found.append(_Unit(staging.path / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.f32", captions))
    return found


def _merge(
    folder: Path, missing: Captions, captions: Captions, units: list[_Unit], dimension: int, staging: Staging
) -> None:
    record = load_record(folder)
    if not missing.keys().isdisjoint(record):  # so that no half merged folder passes for one of the earlier captions
        _write_record(folder, {key: of_one for key, of_one in record.items() if key not in missing}, staging)
    where = {caption: (unit.path, row) for unit in units for row, caption in enumerate(unit.captions)}
    for key, of_one in tqdm(missing.items(), unit=" files", desc="writing", disable=None):
        vectors = np.stack([_row(*where[caption], dimension) for caption in of_one])
        path, data = folder / f"{key}.npy", io.BytesIO()
        np.save(data, vectors[0] if len(vectors) == 1 else vectors)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(path, data.getvalue())
    if missing:
        _write_record(folder, load_record(folder) | captions, staging)
    staging.remove()


def _row(path: Path, row: int, dimension: int) -> np.ndarray:
    return np.fromfile(path, "<f4", count=dimension, offset=row * dimension * 4)


def _write_record(folder: Path, record: Captions, staging: Staging) -> None:
    with staging.write(folder / RECORD_NAME) as file:
        for key, of_one in sorted(record.items()):
            file.write(record_line(key, of_one).encode())
