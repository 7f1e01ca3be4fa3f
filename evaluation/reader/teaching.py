"""Teaching a reader on real images with captions, and asking it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from evaluation.reader.network import Reader, augmented, prepared
from toolkit import draws
from toolkit.errors import UserError
from toolkit.networks.losses import match_loss

BATCH = 64
SEEN = 90_000
"""Images looked at while it learns, a whole number of epochs from 6 to 24: 3,750 photos 24 times."""
FEWEST = 200
"""Real images below which nothing can be taught."""
EACH = 5
"""Images that each caption must have on average to be a class; with fewer, captions are told apart by their vectors."""
RATE, DECAY, SMOOTHING = 3e-3, 0.05, 0.1
SYNONYM = 0.999
"""Cosine from which two captions count as one."""
AMONG = 100
"""Captions that the own one is looked for among, where captions are all different."""


class Labelled(NamedTuple):
    """Real or generated images with their captions."""

    images: Tensor
    """uint8 [N, 3, H, H]."""
    captions: list[str]
    vectors: Tensor
    """float32 [N, E], unit length."""


class Taught(NamedTuple):
    reader: Reader
    captions: tuple[str, ...]
    """Its classes; () where it meets text vectors."""


def classes(captions: list[str]) -> tuple[str, ...]:
    """The captions to tell apart, in order of appearance; () if they are too many for so few images."""
    known = tuple(dict.fromkeys(captions))
    return known if 2 <= len(known) <= len(captions) / EACH else ()


def epochs(count: int) -> int:
    return max(6, min(24, round(SEEN / count)))


def teach(real: Labelled, seed: int, shown: bool = True) -> Taught:
    """A function of images, captions and seed. Minutes on a CPU at 32 px. Raises UserError for too few images."""
    count = len(real.images)
    if count < FEWEST:
        raise UserError(f"{count} real images to teach a reader on; it needs {FEWEST}")
    known = classes(real.captions)
    if len(set(real.captions)) < 2:
        raise UserError("all captions are equal: there is nothing to read")
    images = prepared(real.images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.integer(2**62, seed, "reader"))
        reader = Reader(images.shape[-1], len(known), real.vectors.shape[1]).to(memory_format=torch.channels_last)
        labels = torch.tensor([known.index(caption) for caption in real.captions]) if known else None
        _fit(reader, images, labels, real.vectors, seed, shown)
    return Taught(reader.eval(), known)


def _fit(reader: Reader, images: Tensor, labels: Tensor | None, vectors: Tensor, seed: int, shown: bool) -> None:
    count = len(images)
    batch, rounds = min(BATCH, count // 2), epochs(count)
    optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=rounds * (count // batch))
    reader.train()
    with tqdm(total=rounds * (count // batch), desc="teaching a reader", disable=None if shown else True) as bar:
        for epoch in range(rounds):
            random = draws.generator(seed, "reader", epoch)
            order = torch.randperm(count, generator=random)
            for rows in order[: count // batch * batch].split(batch):
                features = reader.drop(reader.features(augmented(images[rows], random)))
                loss = _loss(reader, features, None if labels is None else labels[rows], vectors[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()


def _loss(reader: Reader, features: Tensor, labels: Tensor | None, vectors: Tensor) -> Tensor:
    if reader.choose is not None:
        assert labels is not None
        return F.cross_entropy(reader.choose(features), labels, label_smoothing=SMOOTHING)
    assert reader.match is not None
    return match_loss(reader.match(features, vectors, vectors), vectors @ vectors.T >= SYNONYM).mean()


@torch.no_grad()
def features_of(taught: Taught, images: Tensor) -> Tensor:
    """uint8 [N, 3, H, H] -> [N, 256], the mean of each image and its mirror image."""
    found = []
    for chunk in images.split(250):
        shown = prepared(chunk)
        found.append((taught.reader.features(shown) + taught.reader.features(shown.flip(3))) / 2)
    return torch.cat(found)


@torch.no_grad()
def places(taught: Taught, seen: Labelled, pool: Labelled, seed: int) -> Tensor:
    """int64 [N]: how many captions the reader prefers to the own one; 0: it reads the caption.

    Of its classes all are compared; else AMONG - 1 captions drawn from `pool` for each image, that are no synonyms.
    Raises UserError for a caption that it was never taught.
    """
    features = features_of(taught, seen.images)
    if taught.captions:
        place = {caption: i for i, caption in enumerate(taught.captions)}
        if (unknown := next((c for c in seen.captions if c not in place), None)) is not None:
            raise UserError(
                f"the reader was taught no caption {unknown[:80]!r}; score images of the dataset's captions"
            )
        own = torch.tensor([place[caption] for caption in seen.captions])
        assert taught.reader.choose is not None
        scores = taught.reader.choose(features)
        return (scores > scores.gather(1, own[:, None])).sum(dim=1)
    assert taught.reader.match is not None
    found = taught.reader.match(features, seen.vectors, pool.vectors)
    mine, others = found[:, :1], found[:, 1:]
    counts = seen.vectors @ pool.vectors.T < SYNONYM
    chance = torch.rand(counts.shape, generator=draws.generator(seed, "reader's captions")).masked_fill(~counts, 2.0)
    among = chance.argsort(dim=1)[:, : AMONG - 1]
    return (others.gather(1, among) > mine).logical_and(counts.gather(1, among)).sum(dim=1)
