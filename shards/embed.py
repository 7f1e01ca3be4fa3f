"""Captions -> embeddings on disk, and back: `python -m shards.embed --input_dir DIR --output_dir OUT`.

OUT holds `KEY.npy` (float32 [E], or [K, E] for K captions, unit length), `encoder.json` (which encoder made them) and
`embedded.jsonl` (of which captions, so that an edited one is noticed).
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from shards.captions import CaptionRules, find_captions, first_few, print_problems, summary
from toolkit.command_line import run
from toolkit.errors import UserError, check
from toolkit.text_encoder import EncoderIdentity, TextEncoder, load_encoder

IDENTITY_NAME, RECORD_NAME = "encoder.json", "embedded.jsonl"
MAX_EMBEDDING_BYTES = 2**26
MAX_CACHED_CAPTIONS = 100_000
"""About 300 MB at 768 dimensions; beyond it the cache starts anew."""


@dataclass(frozen=True)
class EmbedOptions:
    """Embed every caption of a folder with a text encoder; run again to add what is missing."""

    input_dir: Path
    """Folder with captions: a tree of .txt files, a table (captions.jsonl, ...) or any form shards.create reads."""
    output_dir: Path
    """Folder for KEY.npy and encoder.json; made if absent."""
    model: str = "ViT-L-14"
    """open_clip architecture."""
    pretrained: str = "laion2b_s32b_b82k"
    """open_clip tag: which weights of the architecture."""
    encoder: str = ""
    """Instead of model and pretrained: 'hashing' (no download, for demos) or 'architecture/tag'."""
    encoder_weights: Path | None = None
    """Local copy of the tag's weights file; default: open_clip's cache or download."""
    batch: int = 256
    """Captions encoded between two writes, 1 to 65536."""
    device: str = "auto"
    """Where the encoder runs: cpu, cuda, cuda:1, or auto (cuda if there is one)."""
    where: str = ""
    """FIELD=VALUE: only the table rows with that value, e.g. split=train; default all."""
    file_column: str = ""
    """Table column with the picture's path; default: file, file_name, filename, image or path."""
    caption_column: str = ""
    """Table column with the caption or list of captions; default: caption, captions, text or title."""
    class_template: str = ""
    """For class folders: the caption with {} for the folder's name, e.g. 'a photo of {}'."""

    def __post_init__(self) -> None:
        check(1 <= self.batch <= 65536, "--batch", self.batch, "from 1 to 65536")
        default = (EmbedOptions.model, EmbedOptions.pretrained)
        if self.encoder and (self.model, self.pretrained) != default:
            raise UserError("--encoder stands for --model and --pretrained; give the one or the others")
        _ = self.rules  # checks --where and --class_template

    @property
    def rules(self) -> CaptionRules:
        return CaptionRules(self.where, self.file_column, self.caption_column, self.class_template)


class CachedEncoder:
    """A text encoder that encodes equal captions once."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.truncated = encoder, 0
        self._known: dict[str, np.ndarray] = {}

    def encode(self, captions: list[str]) -> np.ndarray:
        """N captions -> float32 [N, E], unit length; `truncated` counts those longer than the encoder reads."""
        if len(self._known) > MAX_CACHED_CAPTIONS:
            self._known.clear()
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._known]:
            self._known.update(zip(new, self.encoder.encode(new).numpy(), strict=True))
            self.truncated += self.encoder.count_truncated(new)
        return np.stack([self._known[caption] for caption in captions])


def load_cached(name: str, weights: Path | None, device: str) -> CachedEncoder:
    """`device` 'auto': a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return CachedEncoder(load_encoder(name, weights, device))


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


def save_identity(folder: Path, identity: EncoderIdentity) -> None:
    text = json.dumps(dataclasses.asdict(identity), indent=1, ensure_ascii=False)
    _write(folder / IDENTITY_NAME, (text + "\n").encode())


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


def load_record(folder: Path) -> dict[str, tuple[str, ...]]:
    """Key -> the captions its embedding was made of; empty for embeddings made elsewhere."""
    path = folder / RECORD_NAME
    record = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            entry = json.loads(line)
            record[entry["key"]] = tuple(entry["captions"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of an interrupted run: its captions count as not yet embedded
    return record


def _write(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_bytes(data)
    staged.replace(path)


def _write_embedding(folder: Path, key: str, vectors: np.ndarray) -> None:
    path = folder / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    np.save(data, vectors[0] if len(vectors) == 1 else vectors)
    _write(path, data.getvalue())


def _check_origin(folder: Path, identity: EncoderIdentity) -> None:
    """Vectors of two encoders must not meet in one folder."""
    earlier = load_identity(folder)
    if earlier is None and next(folder.rglob("*.npy"), None):
        raise UserError(f"{folder} holds .npy files but no {IDENTITY_NAME}; embed into a new folder")
    if earlier and (difference := earlier.difference(identity)):
        raise UserError(f"{folder} was embedded by another encoder: {difference}; embed into a new folder")


def main(options: EmbedOptions) -> None:
    captions, problems = find_captions(options.input_dir, options.rules)
    if not captions:
        raise UserError(f"no usable caption in {options.input_dir}{first_few(problems)}")
    folder, name = options.output_dir, options.encoder or f"{options.model}/{options.pretrained}"
    encoder = load_cached(name, options.encoder_weights, options.device)
    identity = EncoderIdentity.of(encoder.encoder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_origin(folder, identity)
        save_identity(folder, identity)
        record = load_record(folder)
        missing = [key for key in captions if record.get(key) != captions[key] or not (folder / f"{key}.npy").is_file()]
        _embed(folder, {key: captions[key] for key in missing}, encoder, options.batch)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    print_problems(problems)
    print(
        f"embedded {len(missing):,} of {len(captions):,} samples with {name} into {folder}: {identity.dimension}-d, "
        f"{encoder.truncated:,} captions truncated; {summary(problems)}"
    )


def _embed(folder: Path, captions: dict[str, tuple[str, ...]], encoder: CachedEncoder, batch: int) -> None:
    keys = list(captions)
    with (
        (folder / RECORD_NAME).open("a", encoding="utf-8") as record,
        tqdm(total=len(keys), disable=None) as bar,
    ):
        if record.tell():
            record.write("\n")  # ends the line that an interrupted run may have left half written
        for start in range(0, len(keys), batch):
            chunk = keys[start : start + batch]
            vectors = encoder.encode([caption for key in chunk for caption in captions[key]])
            for key in chunk:
                mine, vectors = np.split(vectors, [len(captions[key])])
                _write_embedding(folder, key, mine)
                entry = {"key": key, "captions": captions[key]}
                record.write(json.dumps(entry, ensure_ascii=False) + "\n")
            record.flush()
            bar.update(len(chunk))


if __name__ == "__main__":
    run(main, EmbedOptions)
