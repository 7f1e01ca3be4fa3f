"""Where the embeddings of samples come from: a folder of stored ones, or an encoder that makes them now."""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from shards.caption_folder.samples import Sample
from shards.embedding.caption_encoder import load_caption_encoder
from shards.embedding_folder import embedding_widths, load_identity, load_record, read_embedding
from shards.problems import Problem
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import check_open_clip_name
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

PROBES = 4
"""Captions of the data that identify an encoder whose vectors were computed elsewhere."""


class EmbeddingSource(NamedTuple):
    """Embeddings of samples, and which encoder they are of."""

    identity: EncoderIdentity
    of: Callable[[list[Sample]], "list[np.ndarray | Problem]"]
    """Samples -> for each float32 [K, E], unit length, or why there is none."""


def encode_now(name: str, weights: Path | None, device: str) -> EmbeddingSource:
    """Raises UserError if the encoder cannot be loaded."""
    encoder = load_caption_encoder(name, weights, device)

    def encode(samples: list[Sample]) -> list[np.ndarray | Problem]:
        vectors = encoder.encode([caption for sample in samples for caption in sample.captions])
        ends = np.cumsum([len(sample.captions) for sample in samples])
        return list(np.split(vectors, ends[:-1]))

    return EmbeddingSource(encoder.identity, encode)


def read_stored(folder: Path, encoder: str, weights: Path | None, samples: list[Sample]) -> EmbeddingSource:
    """`encoder`: who made them, if the folder does not say; `weights`: where its tag is none of open_clip's.

    Raises UserError if the folder is missing, of unknown origin or another encoder's, or empty.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of embeddings at {folder}; make one with python -m shards.embed")
    identity = load_identity(folder)
    if identity and encoder not in ("", identity.name):
        raise UserError(f"{folder} was embedded by {identity.name}, not by --encoder {encoder}; leave it out")
    if identity is None:
        _check_declared(folder, encoder, weights)
        identity = _declared(encoder, folder, samples)
    record = load_record(folder)

    def read(sample: Sample) -> np.ndarray | Problem:
        path = f"{sample.key}.npy"
        if record.get(sample.key, sample.captions) != sample.captions:
            return Problem(path, "stale embedding: made of other captions; run shards.embed again")
        try:
            return read_embedding(folder / path, len(sample.captions), identity.dimension)
        except UserError as error:
            return Problem(path, str(error))

    return EmbeddingSource(identity, lambda chunk: [read(sample) for sample in chunk])


def find_orphans(folder: Path, keys: set[str]) -> list[Problem]:
    """Stored embeddings that belong to none of the samples."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))
    return [Problem(path, "embedding without image") for path in paths if path.removesuffix(".npy") not in keys]


def _check_declared(folder: Path, encoder: str, weights: Path | None) -> None:
    """The name goes into every checkpoint, and only there would a wrong one be noticed."""
    if not encoder:
        raise UserError(f"{folder} does not say which encoder made it (no encoder.json); name it with --encoder")
    if encoder != HashingEncoder.name:
        check_open_clip_name(encoder, weights)


def _declared(name: str, folder: Path, samples: list[Sample]) -> EncoderIdentity:
    """For vectors that came without an identity: the commonest width, and some of the data's own pairs as probes."""
    widths = Counter(embedding_widths(folder / f"{sample.key}.npy" for sample in samples[:100]))
    probes: dict[str, np.ndarray] = {}
    dimension = widths.most_common(1)[0][0] if widths else 0
    for sample in samples[:2000]:
        with contextlib.suppress(UserError):
            vectors = read_embedding(folder / f"{sample.key}.npy", len(sample.captions), dimension)
            probes.setdefault(sample.captions[0], vectors[0])
        if len(probes) == PROBES:
            break
    if not probes:
        raise UserError(f"{folder} holds no usable embedding KEY.npy, the first expected is {samples[0].key}.npy")
    return EncoderIdentity.from_vectors(name, list(probes), torch.from_numpy(np.stack(list(probes.values()))))
