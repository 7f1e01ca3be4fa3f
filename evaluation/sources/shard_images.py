"""The images of a shard folder, local or at an address, each with its first caption."""

import hashlib

import numpy as np
import torch

from evaluation.sources.decoded import decoded, named, square_pixels
from evaluation.sources.fingerprint import images_fingerprint
from evaluation.sources.source import Source, Vectors
from toolkit.data.shard_reader import ShardSet


def shard_images(shards: ShardSet, name: str, order: list[int], size: int | None = None) -> Source:
    """The samples of these numbers, fitted as training fits them, to `size` if it is given.

    Raises UserError when a damaged sample is drawn.
    """
    side, fit = size or shards.manifest.resolution, shards.manifest.fit or "crop"

    def pixels(i: int) -> np.ndarray:
        where = f"{shards.shard_path(order[i])}: sample {order[i]}"
        data = shards.read(order[i]).image
        return named(where, lambda: square_pixels(data, side, fit))

    def fingerprint() -> str:
        hashes = (hashlib.sha256(shards.read(i).image).digest() for i in order)
        return images_fingerprint(hashes, name, len(order), side, side, fit)

    def vectors() -> Vectors:
        return Vectors(torch.stack([shards.read_texts(i).vectors[0] for i in order]), shards.manifest.encoder)

    return Source(
        name,
        "shards",
        len(order),
        side,
        side,
        decoded(pixels, side, side),
        lambda: [shards.read_captions(i)[0] for i in order],
        fingerprint,
        read_vectors=vectors,
    )
