"""A folder of embeddings: what is written is whole, what is read is what it claims to be.

It holds `KEY.npy` (float32 [E], or [K, E] for K captions, unit length), `encoder.json` (which encoder made them) and
`embedded.jsonl` (of which captions, so that an edited one is noticed).
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

IDENTITY_NAME, RECORD_NAME = "encoder.json", "embedded.jsonl"
MAX_EMBEDDING_BYTES = 2**26


def identity_json(identity: EncoderIdentity) -> bytes:
    """The content of `encoder.json`."""
    return (json.dumps(dataclasses.asdict(identity), indent=1, ensure_ascii=False) + "\n").encode()


def load_identity(folder: Path) -> EncoderIdentity | None:
    """Which encoder made the embeddings of `folder`; None if it does not say. UserError if damaged."""
    path = folder / IDENTITY_NAME
    try:
        identity = EncoderIdentity.from_json(json.loads(path.read_text(encoding="utf-8")))
        identity.vectors()
        return identity
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); run shards.embed into a new folder") from None


def check_origin(folder: Path, identity: EncoderIdentity) -> None:
    """Vectors of two encoders, or of two precisions of one, must not meet in one folder. Raises UserError."""
    earlier = load_identity(folder)
    if earlier is None and next(folder.rglob("*.npy"), None):
        raise UserError(f"{folder} holds .npy files but no {IDENTITY_NAME}; embed into a new folder")
    if earlier and (difference := earlier.difference(identity)):
        raise UserError(f"{folder} was embedded by another encoder: {difference}; embed into a new folder")
    if earlier and earlier.precision != identity.precision:
        raise UserError(
            f"{folder} was embedded in {earlier.precision}, not in {identity.precision}: vectors of both must not mix; "
            f"pass --precision {earlier.precision}, or embed into a new folder"
        )


def load_record(folder: Path) -> dict[str, tuple[str, ...]]:
    """Key -> the captions its embedding was made of; empty for embeddings made elsewhere."""
    path = folder / RECORD_NAME
    record = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            entry = json.loads(line)
            record[entry["key"]] = tuple(entry["captions"])
        except (ValueError, KeyError, TypeError):
            continue  # of an interrupted run: its captions count as not yet embedded
    return record


def record_line(key: str, captions: tuple[str, ...]) -> str:
    return json.dumps({"key": key, "captions": captions}, ensure_ascii=False) + "\n"


def embedding_widths(paths: Iterable[Path]) -> Iterator[int]:
    """The last dimension of each .npy that can be read."""
    for path in paths:
        with contextlib.suppress(UserError):
            yield from _read_array(path).shape[-1:]


def read_embedding(path: Path, captions: int, dimension: int) -> np.ndarray:
    """A .npy of [E], or [K, E] for K `captions` -> float32 [K, E], unit length.

    Raises UserError with the reason alone ('wrong embedding: expected, found') for anything else; never unpickles.
    """
    array = _read_array(path)
    expected = f"[{dimension}] or [1, {dimension}]" if captions == 1 else f"[{captions}, {dimension}]"
    if array.dtype.kind != "f":
        raise UserError(f"wrong embedding: {array.dtype} values, expected floating point")
    if array.shape != (captions, dimension) and (captions, *array.shape) != (1, dimension):
        raise UserError(f"wrong embedding: shape {list(array.shape)}, expected {expected}")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(array, dtype=np.float32).reshape(captions, dimension)
    if not np.isfinite(vectors).all():
        raise UserError("wrong embedding: NaN or infinity, expected finite numbers")
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if length.min() < 1e-6:
        raise UserError("wrong embedding: a zero vector, expected a direction")
    return (vectors / length).astype(np.float32)


def _read_array(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > MAX_EMBEDDING_BYTES:
            raise UserError(f"wrong embedding: over {MAX_EMBEDDING_BYTES:,} bytes")
        # read_array and not np.load, which would also open zip archives
        return np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except FileNotFoundError:
        raise UserError("missing embedding") from None
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(f"wrong embedding: no readable .npy ({' '.join(str(error).split())})") from None
