"""Samples of one shard -> the rows of its sidecar, in memory that does not grow with the vectors."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from shards.embedding.caption_encoder import CaptionEncoder, by_length
from toolkit.data.dataset import read_decoded
from toolkit.data.images import to_pil
from toolkit.data.shard_reader import DamagedSample, ShardSet
from toolkit.data.sidecar import DTYPE, write_header
from toolkit.data.tar_index import list_tar
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.errors import UserError

CAPTIONS_AT_ONCE, IMAGES_AT_ONCE = 4096, 256
"""Fixed, for the last bits of a vector depend on its company."""


def read_captions(shards: ShardSet, samples: range) -> list[tuple[str, ...]]:
    """Per sample. Raises UserError with the name of one that is damaged."""
    found = []
    for i in samples:
        try:
            found.append(shards.read_captions(i))
        except DamagedSample as error:
            raise _named(shards, i, error) from None
    return found


def write_texts(file: BinaryIO, shards: ShardSet, samples: range, encoder: CaptionEncoder, bar: tqdm) -> None:
    """A row per caption, all captions of a sample adjacent. Raises UserError naming a damaged sample."""
    captions = [caption for of_one in read_captions(shards, samples) for caption in of_one]
    distinct = by_length(captions)
    number = {caption: i for i, caption in enumerate(distinct)}
    which = np.fromiter((number[caption] for caption in captions), np.int64, len(captions))
    order = np.argsort(which, kind="stable")
    write_header(file, len(captions), encoder.identity.dimension)
    file.flush()
    start, width = file.tell(), encoder.identity.dimension * DTYPE.itemsize
    for first in range(0, len(distinct), CAPTIONS_AT_ONCE):
        vectors = encoder.encode(distinct[first : first + CAPTIONS_AT_ONCE]).astype(DTYPE)
        begin, end = np.searchsorted(which[order], (first, first + len(vectors)))
        for row in order[begin:end].tolist():
            os.pwrite(file.fileno(), vectors[which[row] - first].tobytes(), start + row * width)
        bar.update(len(samples) * (first + len(vectors)) // len(distinct) - len(samples) * first // len(distinct))


def write_images(file: BinaryIO, shards: ShardSet, samples: range, encoder: CaptionEncoder, bar: tqdm) -> None:
    """A row per sample, of the image as training sees it. Raises UserError naming a damaged sample."""
    clip = encoder.encoder
    assert isinstance(clip, OpenClipEncoder)  # `embed_shards` refuses others

    def prepare(i: int) -> Tensor:
        try:
            return clip.preprocess(to_pil(read_decoded(shards, i)[1]))
        except DamagedSample as error:
            raise _named(shards, i, error) from None

    write_header(file, len(samples), encoder.identity.dimension)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow works outside the interpreter lock
        for first in range(0, len(samples), IMAGES_AT_ONCE):
            chunk = samples[first : first + IMAGES_AT_ONCE]
            vectors = clip.encode_images(torch.stack(list(pool.map(prepare, chunk))), encoder.half)
            file.write(vectors.numpy().astype(DTYPE).tobytes())
            bar.update(len(chunk))


def _named(shards: ShardSet, i: int, reason: DamagedSample) -> UserError:
    """With the sample's key: the number alone is found in no tar."""
    path = shards.shard_path(i)
    keys, rows = list_tar(path, 0)
    key = next((key for key, row in zip(keys, rows.tolist(), strict=True) if row[3] == shards.index[i, 3]), "?")
    return UserError(f"{path}, sample '{key}' cannot be embedded: {reason}; nothing was changed. Build it again")
