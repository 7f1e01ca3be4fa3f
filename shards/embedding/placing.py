"""Finished sidecars become those of the folder, at one moment: when the new manifest replaces the old one."""

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.embedding.sidecar_rows import read_captions
from shards.embedding.staging import Staging
from toolkit.data.shard_format import FORMAT_VERSION, INDEX_NAME, MANIFEST_NAME, Manifest, Sidecar
from toolkit.data.shard_reader import ShardSet
from toolkit.data.sidecar import DTYPE, check_sidecar
from toolkit.durable import file_sha256, flush_to_disk
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

OURS = re.compile(r".+\.(text|image)-[0-9a-f]{8}\.npy|index-[0-9a-f]{8}\.npy")


def put_in_place(
    shards: ShardSet, identity: EncoderIdentity, texts: list[str], images: list[str], staging: Staging
) -> None:
    """`texts`, `images`: per shard the name of its sidecar; no images, or one for each too.

    A kill at any point leaves a folder that reads as before or as after. Twice at once does no harm.
    """
    folder, old = shards.folder, shards.manifest
    index = io.BytesIO()
    np.save(index, _new_index(shards, identity.dimension, texts))
    index_sha256 = hashlib.sha256(index.getvalue()).hexdigest()
    index_name = f"index-{index_sha256[:8]}.npy"
    staging.write_bytes(folder / index_name, index.getvalue())
    for name, shard in zip(images, old.shards, strict=bool(images)):
        check_sidecar(folder / name, identity.dimension, shard.samples)
    new = replace(
        old,
        encoder=identity,
        vectors=tuple(_sidecar(folder / name) for name in texts),
        image_vectors=tuple(_sidecar(folder / name) for name in images),
        index_name=index_name,
        index_sha256=index_sha256,
        version=FORMAT_VERSION,
    )
    if Manifest.load(folder) not in (old, new):
        raise UserError(f"{folder} was changed by another command meanwhile; run again")
    flush_to_disk(folder)  # the files' names must be on disk before the manifest that lists them
    staging.write_bytes(folder / MANIFEST_NAME, new.to_json())
    flush_to_disk(folder)
    remove_superseded(folder, new, old)
    staging.remove()


def _new_index(shards: ShardSet, dimension: int, texts: list[str]) -> np.ndarray:
    """int64 [N, 7]: the old one with the places of the new rows. Raises UserError if a sidecar has too few or many."""
    index, width, first = np.array(shards.index), dimension * DTYPE.itemsize, 0
    for name, shard in zip(texts, shards.manifest.shards, strict=True):
        samples = range(first, first + shard.samples)
        first += shard.samples
        counts = np.array([len(captions) for captions in read_captions(shards, samples)])
        start = check_sidecar(shards.folder / name, dimension, int(counts.sum()))
        rows = index[samples.start : samples.stop]
        rows[:, 5] = start + width * (np.cumsum(counts) - counts)
        rows[:, 6] = width * counts
    return index


def _sidecar(path: Path) -> Sidecar:
    return Sidecar(path.name, path.stat().st_size, file_sha256(path))


def remove_superseded(folder: Path, manifest: Manifest, *earlier: Manifest) -> None:
    """The embeddings and indices of earlier manifests, and what killed runs have left."""
    listed = {manifest.index_name, *(file.name for file in manifest.files)}
    found = {INDEX_NAME, *(path.name for path in folder.iterdir() if OURS.fullmatch(path.name))}
    for old in earlier:
        found |= {old.index_name, *(file.name for file in (*old.vectors, *old.image_vectors))}
    for name in found - listed:
        (folder / name).unlink(missing_ok=True)
