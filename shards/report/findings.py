"""One pass over a shard folder: all that the page says, in some hundred bytes an image."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from shards.near_duplicates import look_of
from shards.report.source_sizes import SourceSizes
from shards.report.words import BoundedCounter, words_of
from toolkit.data.decoding import decode_image
from toolkit.data.shard_reader import Sample, ShardSet
from toolkit.errors import UserError

DAMAGED_LISTED = 1000
CAPTION_KEPT = 300
"""Characters of a caption by which equal ones are counted, and that are shown of it."""


@dataclass
class Findings:
    """What was seen in the samples read."""

    numbers: array = field(default_factory=lambda: array("q"))
    """The samples whose image decodes, ascending."""
    looks: array = field(default_factory=lambda: array("Q"))
    """Hash and mean colour of each of `numbers`, one after the other."""
    sizes: array = field(default_factory=lambda: array("q"))
    """Width and height of the source of each sample where both are recorded."""
    captions: int = 0
    per_image: Counter = field(default_factory=Counter)
    """Number of captions -> images that have so many."""
    lengths: Counter = field(default_factory=Counter)
    """Characters -> captions of that length."""
    words: BoundedCounter = field(default_factory=BoundedCounter)
    """Word -> captions it stands in."""
    texts: BoundedCounter = field(default_factory=BoundedCounter)
    """Caption -> times it is used."""
    damaged: list[str] = field(default_factory=list)
    """The first DAMAGED_LISTED messages."""
    damaged_count: int = 0
    pool: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)
    """Distinct captions -> the sample they were met in, and their embedding, float32 [E]; for the nearest pairs."""

    @property
    def look_pairs(self) -> np.ndarray:
        """uint64 [N, 2] for near_duplicates.group."""
        return np.frombuffer(self.looks, dtype=np.uint64).reshape(-1, 2)

    def add_captions(self, number: int, sample: Sample, may_pool: bool) -> None:
        self.per_image[len(sample.captions)] += 1
        for caption, vector in zip(sample.captions, sample.vectors, strict=True):
            self.captions += 1
            self.lengths[len(caption)] += 1
            self.texts.add(caption[:CAPTION_KEPT])
            for word in sorted(set(words_of(caption))):
                self.words.add(word)
            if may_pool:
                self.pool.setdefault(caption, (number, vector))

    def add_image(self, number: int, image: Image.Image) -> None:
        self.numbers.append(number)
        self.looks.extend(look_of(image))

    def add_damaged(self, message: str) -> None:
        self.damaged_count += 1
        if len(self.damaged) < DAMAGED_LISTED:
            self.damaged.append(message)


def evenly(total: int, count: int) -> list[int]:
    """Up to `count` numbers spread over [0, total)."""
    return list(range(total)) if count >= total else [i * total // count for i in range(count)]


def collect(shard_set: ShardSet, samples: int, pool: int) -> Findings:
    """Read up to `samples` samples, evenly spread; keep up to `pool` distinct captions for comparison, likewise."""
    found, sizes = Findings(), SourceSizes(shard_set.folder, shard_set.manifest)
    numbers = evenly(len(shard_set), samples)
    pooled = set(evenly(len(numbers), pool))
    for place, number in enumerate(tqdm(numbers, desc="reading", disable=None)):
        try:
            sample = shard_set.read(number)
            image = decode_image(sample.image)
        except UserError as error:
            found.add_damaged(f"sample {number}: {error}")
            continue
        found.add_captions(number, sample, place in pooled and len(found.pool) < pool)
        found.add_image(number, image)
        if size := sizes.of(number):
            found.sizes.extend(size)
    return found
