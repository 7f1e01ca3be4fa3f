"""Embeddings beside the tars of an existing shard folder: no tar is copied or written.

The work of a shard is one unit per kind of embedding, and its file a function of the shard and the encoder, which its
name says. So any number of processes give the same bytes, and what a killed one has finished stays. Old and new stand
side by side until the new manifest, which names the new files and the new index, replaces the old one.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from shards.embedding.caption_encoder import CaptionEncoder
from shards.embedding.placing import put_in_place, remove_superseded
from shards.embedding.sidecar_rows import write_images, write_texts
from shards.embedding.staging import Staging
from shards.share import Share
from toolkit.data.shard_reader import ShardSet
from toolkit.data.sidecar import check_sidecar
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.errors import UserError


class _Unit(NamedTuple):
    shard: int
    kind: Literal["text", "image"]
    samples: range
    name: str


def embed_shards(folder: Path, encoder: CaptionEncoder, image: bool, share: Share) -> str:
    """Returns what has been done, for the user. Raises UserError, OSError; then the folder is as it was."""
    if image and not isinstance(encoder.encoder, OpenClipEncoder):
        raise UserError(f"the encoder '{encoder.encoder.name}' has no images' half; leave --image out")
    shards, staging = ShardSet(folder), Staging(folder)
    manifest = shards.manifest
    texts, images = (_units(shards, encoder, kind) for kind in ("text", "image"))
    if [file.name for file in manifest.image_vectors] == [unit.name for unit in images]:
        image = True  # they are this encoder's, and stay
    images = images if image else []
    units = texts + images
    if {unit.name for unit in units} == {file.name for file in (*manifest.vectors, *manifest.image_vectors)}:
        remove_superseded(folder, manifest)  # a kill may have come before that
        staging.remove()
        return f"{folder} holds the embeddings of {encoder.encoder.name} already"
    mine = [unit for unit in share.mine(units) if not _finished(folder, unit, encoder)]
    with tqdm(
        total=sum(len(unit.samples) for unit in mine), unit=" samples", disable=True if share.index else None
    ) as bar:
        for unit in mine:
            _embed(shards, encoder, unit, staging, bar)
    done = [unit for unit in units if _finished(folder, unit, encoder)]
    if len(done) < len(units):
        return f"{len(done)} of {len(units)} are there, the others are other processes'; if one died, start it again"
    put_in_place(shards, encoder.identity, [u.name for u in texts], [u.name for u in images], staging)
    return (
        f"embedded {len(shards):,} samples of {folder} with {encoder.encoder.name}: "
        f"{encoder.identity.dimension}-d, {encoder.truncated:,} captions truncated, {len(units)} files beside the tars"
    )


def _units(shards: ShardSet, encoder: CaptionEncoder, kind: Literal["text", "image"]) -> list[_Unit]:
    found, start = [], 0
    for number, shard in enumerate(shards.manifest.shards):
        samples = range(start, start + shard.samples)
        start += shard.samples
        found.append(_Unit(number, kind, samples, _name(shards, encoder, number, kind, samples)))
    if start != len(shards):
        raise UserError(f"{shards.folder}: the shards sum to {start} samples, the index has {len(shards)}; build again")
    return found


def _name(shards: ShardSet, encoder: CaptionEncoder, number: int, kind: Literal["text", "image"], of: range) -> str:
    """`shard-00000.text-1a2b3c4d.npy`: of all that the rows depend on, so that a leftover is never taken for them.

    Not of the probe vectors, whose last bit differs between kinds of GPU.
    """
    manifest, about = shards.manifest, encoder.identity
    rows = shards.index[of.start : of.stop]
    if (rows[:, 0] != number).any():
        raise UserError(f"{shards.folder}: the index has samples of another shard under shard {number}; build again")
    how = [manifest.whole_texts] if kind == "text" else [manifest.fit, manifest.resolution]
    facts = [kind, about.name, about.dimension, about.weights_sha256, about.precision, *how]
    digest = hashlib.sha256(json.dumps([*facts, manifest.shards[number].sha256]).encode())
    digest.update(np.ascontiguousarray(rows[:, :5]).tobytes())
    return f"{Path(manifest.shards[number].name).stem}.{kind}-{digest.hexdigest()[:8]}.npy"


def _finished(folder: Path, unit: _Unit, encoder: CaptionEncoder) -> bool:
    if not (folder / unit.name).is_file():
        return False
    check_sidecar(folder / unit.name, encoder.identity.dimension)
    return True


def _embed(shards: ShardSet, encoder: CaptionEncoder, unit: _Unit, staging: Staging, bar: tqdm) -> None:
    write = write_texts if unit.kind == "text" else write_images
    with staging.write(shards.folder / unit.name) as file:
        write(file, shards, unit.samples, encoder, bar)
