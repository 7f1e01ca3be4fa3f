"""Command: is the caption drawn? Read by a small network taught from scratch on the dataset itself.

    python -m evaluation.read SHARDS --fake RUN

A linear reader on Inception's features read 0.25 of generated dishes where a network taught from scratch read 0.59: it
is too weak a judge. This one shares nothing with ImageNet, so that a discriminator on a pretrained backbone gains
nothing by it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance, statistics
from evaluation.metrics.layout_sameness import layout_sameness
from evaluation.options import listed
from evaluation.reader.store import key_of, taught_or_kept
from evaluation.reader.teaching import AMONG, Labelled, Taught, epochs, features_of, places
from evaluation.sources.opening import is_checkpoint, open_source
from evaluation.sources.source import Source, chosen
from toolkit import draws
from toolkit.command_line import data_first, run
from toolkit.data.dataset import sound_samples
from toolkit.data.feature_cache import default_folder
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_reader import ShardSet
from toolkit.durable import write_whole
from toolkit.errors import UserError, check
from toolkit.inference.sampling import load_generator

HELD_OUT = 10
"""One in so many images of the shards is not taught."""
LAYOUT_CAPTIONS, LAYOUT_IMAGES = 64, 4
"""Captions, and images of each, that a checkpoint draws to compare layouts."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Teach a small network to read the captions of a dataset's images, and ask it about generated ones."""

    data: str
    """Shard folder (or address) whose images teach the reader. May stand first without the flag."""
    fake: list[str]
    """What is read: checkpoints, run folders or shard folders, one after the other."""
    held_out: str | None = None
    """Shards of real images that the reader never sees; default: a tenth of data, which it is not taught."""
    count: int = 1000
    """Generated images, of captions drawn from data."""
    teach: int = 20_000
    """Most images that it is taught on; 3,750 of 32 pixels take five minutes of a CPU core."""
    seed: int = 0
    """Chooses the images and the noise, and teaches the reader."""
    cache: str | None = None
    """Folder that keeps the reader (default: in the user's cache folder; '': none)."""
    anew: bool = False
    """Teach it again even if it is kept."""
    out: Path | None = None
    """File for the report (.json); default: standard output alone."""

    def __post_init__(self) -> None:
        check(bool(self.fake) and all(self.fake), "fake", self.fake, "one or more paths")
        check(self.count >= 64, "count", self.count, "at least 64")
        check(self.teach >= 200, "teach", self.teach, "at least 200")
        check(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")
        check(self.out is None or self.out.suffix == ".json", "out", str(self.out), "a file ending in .json")


def main(options: ReadOptions) -> None:
    shards = open_shards(options.data)
    taught_on, unseen = split(shards, options)
    print(f"reading {len(taught_on):,} images to teach and {len(unseen[1]):,} unseen ones", file=sys.stderr)
    real = labelled(shards, taught_on)
    folder = None if options.cache == "" else Path(options.cache) if options.cache else default_folder("readers")
    key = key_of(shards.manifest.fingerprint, taught_on, options.seed)
    taught = taught_or_kept(real, key, options.seed, folder, options.anew)
    judge = Judge(taught, real, labelled(*unseen), options.seed)
    reports = []
    for path in options.fake:
        source = open_source(path, options.count, shards.manifest.resolution, options.seed, options.data)
        scores = judge.real_scores() | judge.scores(drawn(source, shards), layout_of(path, shards, options.seed))
        protocol = {
            "fake": source.name, "images": source.count, "taught_on": len(taught_on), "unseen": len(unseen[1]),
            "epochs": epochs(len(taught_on)), "reader": key[:16], "seed": options.seed,
            "read": "caption of all" if taught.captions else f"own caption first among {AMONG}",
        }  # fmt: skip
        reports.append({"scores": scores, "protocol": protocol})
    text = json.dumps(reports if len(reports) > 1 else reports[0], indent=1, ensure_ascii=False)
    if options.out is not None:
        write_whole(options.out, (text + "\n").encode())
    print(text)


class Judge:
    """Scores images by a taught reader, beside real ones that it has never seen."""

    def __init__(self, taught: Taught, real: Labelled, unseen: Labelled, seed: int) -> None:
        self.taught, self.real, self.unseen, self.seed = taught, real, unseen, seed
        self.of_unseen = features_of(taught, unseen.images)

    def real_scores(self) -> dict[str, float | None]:
        """What unseen real images get: read_real, read_fd_real (one half of them to the other), same_layout_real."""
        half = len(self.of_unseen) // 2
        order = draws.permutation(len(self.of_unseen), self.seed, 0, "halves")
        halves = [statistics(self.of_unseen[rows]) for rows in (order[:half], order[half:])]
        return _named("_real", self._places(self.unseen), frechet_distance(*halves), layout_sameness(
            self.unseen.images, self.unseen.captions))  # fmt: skip

    def scores(self, fake: Labelled, layouts: Labelled | None = None) -> dict[str, float | None]:
        """read, read_fd and same_layout of generated images; `layouts`: images to compare the layouts of."""
        distance = frechet_distance(statistics(features_of(self.taught, fake.images)), statistics(self.of_unseen))
        compared = layouts or fake
        return _named("", self._places(fake), distance, layout_sameness(compared.images, compared.captions))

    def _places(self, images: Labelled) -> Tensor:
        return places(self.taught, images, self.real, self.seed)


def _named(suffix: str, found: Tensor, distance: float, sameness: float | None) -> dict[str, float | None]:
    top10 = float((found < 10).double().mean())
    return {
        f"read{suffix}": float((found == 0).double().mean()), f"read_top10{suffix}": top10,
        f"read_fd{suffix}": distance, f"same_layout{suffix}": sameness,
    }  # fmt: skip


def split(shards: ShardSet, options: ReadOptions) -> tuple[list[int], tuple[ShardSet, list[int]]]:
    """Sample numbers that teach, and the unseen ones with their shards. Raises UserError where they are too few."""
    numbers = chosen(len(shards), None, options.seed)
    if options.held_out is not None:
        other = open_shards(options.held_out)
        if other.manifest.fingerprint == shards.manifest.fingerprint:
            raise UserError(
                "held_out and data are the same shards; leave --held_out out: a tenth of data is unseen then"
            )
        unseen = other, chosen(len(other), 5000, options.seed)
    else:
        apart = [draws.integer(HELD_OUT, 0, "unseen", number) == 0 for number in range(len(shards))]
        unseen = shards, [number for number in numbers if apart[number]][:5000]
        numbers = [number for number in numbers if not apart[number]]
    if len(unseen[1]) < 32:
        raise UserError(f"{len(unseen[1])} unseen real images are too few to say how well it reads; give more images")
    return numbers[: options.teach], unseen


def labelled(shards: ShardSet, numbers: list[int]) -> Labelled:
    """Those of these samples that are not damaged, each with its first caption."""
    found = list(sound_samples(shards, numbers))
    vectors = torch.stack([sample.vectors[0] for sample, _ in found])
    return Labelled(torch.stack([image for _, image in found]), [sample.captions[0] for sample, _ in found], vectors)


def drawn(source: Source, shards: ShardSet) -> Labelled:
    """All images of a source with their captions. Raises UserError for one that has none."""
    captions, vectors = source.captions, source.read_vectors
    if captions is None or vectors is None:
        raise UserError(f"{source.name} has no captions with vectors to read; give a checkpoint or a shard folder")
    values, encoder = vectors()
    if other := shards.manifest.encoder.difference(encoder):
        raise UserError(f"{source.name} was embedded by another encoder than the data: {other}")
    return Labelled(torch.cat(list(source.batches(64))), captions, values)


def layout_of(path: str, shards: ShardSet, seed: int) -> Labelled | None:
    """A few captions several times each, if a checkpoint can draw them: captions that all differ have one image."""
    if not is_checkpoint(path):
        return None
    generator = load_generator(Path(path))
    texts: dict[str, Tensor] = {}
    for number in chosen(len(shards), 16 * LAYOUT_CAPTIONS, seed):
        sample = shards.read_texts(number)
        texts.setdefault(sample.captions[0], sample.vectors[0])
        if len(texts) == LAYOUT_CAPTIONS:
            break
    each = max(LAYOUT_IMAGES, 256 // len(texts))
    captions = [caption for caption in texts for _ in range(each)]
    vectors = torch.stack([texts[caption] for caption in captions])
    noise = [(seed << 32) + 2**31 + i for i in range(len(captions))]
    return Labelled(generator.sample(vectors, noise), captions, vectors)


if __name__ == "__main__":
    run(main, ReadOptions, listed(data_first(sys.argv[1:])))
