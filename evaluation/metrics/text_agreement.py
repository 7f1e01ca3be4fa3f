"""Do images show what their captions say? From vectors of both in one space (CLIP's). Pure functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from toolkit import draws
from toolkit.errors import UserError, check

FORMULAS = {
    "clip_score": "100 * mean(max(cos, 0)): torchmetrics' convention",
    "clip_score_hessel": "2.5 * mean(max(cos, 0)): Hessel et al. 2021, there with the prefix 'A photo depicts '",
    "mean_cosine": "mean(cos)",
    "clip_score_shuffled": "clip_score with every caption given to another image: the floor to beat",
    "r_precision": "share of images whose own caption is nearer than 99 others (Xu et al. 2018, AttnGAN)",
    "median_rank": "median over the images of the own caption's rank among itself and those others, from 1",
    "r_precision_shuffled": "r_precision with every caption given to another image: chance",
}
DISTRACTORS = 99
"""AttnGAN's."""
CHUNK = 256
EQUAL = 1e-12
"""Cosines of equal vectors differ by rounding."""


class ClipScore(NamedTuple):
    """One set of cosines under three conventions; FORMULAS says which."""

    clip_score: float
    clip_score_hessel: float
    mean_cosine: float


class Retrieval(NamedTuple):
    r_precision: float
    """0..1; by chance 1 / (1 + distractors)."""
    median_rank: float
    """1..1 + distractors; by chance half way."""
    ranks: Tensor
    """float64 [N], from 1; equal cosines share the mean of their places."""
    distractors: int
    """Other captions each image chose from: 99, or all others where there are fewer."""
    ties: Tensor
    """int64 [N]: other captions exactly as near as the own one."""

    def top(self, places: int) -> float:
        """0..1: share of images whose own caption is among the nearest `places`; chance: places / (1 + distractors).

        Of captions equally near each has those places that are left with the same share.
        """
        better = self.ranks - 1 - self.ties / 2
        return float(((places - better) / (1 + self.ties)).clamp(0, 1).mean())


def clip_score(images: Tensor, texts: Tensor) -> ClipScore:
    """Vectors [N, E] of images and of their captions, of any length (only directions count). UserError for N = 0."""
    cosines = _cosines(images, texts)
    positive = float(cosines.clamp(min=0).mean())
    return ClipScore(100 * positive, 2.5 * positive, float(cosines.mean()))


def shuffled_clip_score(images: Tensor, texts: Tensor, captions: list[str], seed: int = 0) -> float | None:
    """`clip_score` with captions from `shuffled_order`; None where all captions are equal."""
    order = shuffled_order(captions, seed)
    return None if order is None else clip_score(images, texts[order]).clip_score


def shuffled_order(captions: list[str], seed: int = 0) -> Tensor | None:
    """int64 [N]: image i gets caption order[i], each caption used once; None where all N are equal.

    No image gets a caption equal to its own, unless one caption has more than half of the images; then as few as
    can be. Images stand grouped by caption in a ring, and captions move on by at least the largest group.
    """
    if len(set(captions)) < 2:
        return None
    groups: dict[str, list[int]] = {}
    for i in draws.permutation(len(captions), seed, 0).tolist():
        groups.setdefault(captions[i], []).append(i)
    ring = torch.tensor([i for group in groups.values() for i in group])
    largest = max(map(len, groups.values()))
    spare = max(len(ring) - 2 * largest + 1, 1)
    order = torch.empty_like(ring)
    order[ring] = ring.roll(-largest - draws.integer(spare, seed, "shift"))
    return order


def retrieval(
    images: Tensor, texts: Tensor, captions: list[str], distractors: int = DISTRACTORS, seed: int = 0
) -> Retrieval | None:
    """How often the own caption is the nearest of 100, and its rank; None where all captions are equal.

    Vectors [N, E] of images and of their captions, equal captions having equal vectors. R-precision of Xu et al.
    2018 (AttnGAN, arXiv:1711.10485, section 4), there with another encoder. Distractors are distinct texts, never
    equal to the own; each caption has its own random ones, the same for all its images. Where several are nearest
    together, each counts as first with the same share. For the control give texts and captions in `shuffled_order`.
    """
    if not len(images) == len(texts) == len(captions):
        raise UserError(f"{len(images)} images, {len(texts)} caption vectors and {len(captions)} captions differ")
    _cosines(images, texts)
    own, first = distinct(captions)
    chosen = candidates(own, len(first), distractors, seed)
    if chosen is None:
        return None
    bank = normalize(texts[first].double())
    better, ties = [], []
    for vectors, compared in zip(normalize(images.double()).split(CHUNK), chosen.split(CHUNK), strict=True):
        cosines = (bank[compared] @ vectors[:, :, None])[:, :, 0]
        margin = cosines[:, 1:] - cosines[:, :1]
        better.append((margin > EQUAL).sum(dim=1))
        ties.append((margin.abs() <= EQUAL).sum(dim=1))
    return ranked(torch.cat(better), torch.cat(ties), chosen.shape[1] - 1)


def ranked(better: Tensor, ties: Tensor, distractors: int) -> Retrieval:
    """From how many of the other captions are nearer than the own one and as near, int64 [N] each."""
    ranks = (1 + better + ties / 2).double()
    found = Retrieval(0.0, float(ranks.quantile(0.5)), ranks, distractors, ties)
    return found._replace(r_precision=found.top(1))


def rows_by_caption(captions: list[str]) -> dict[str, list[int]]:
    """The numbers of each caption's images, captions in order of first appearance."""
    rows: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        rows.setdefault(caption, []).append(i)
    return rows


def distinct(captions: list[str]) -> tuple[Tensor, Tensor]:
    """int64 [N], the number of each image's caption, and int64 [U], the first image of each of the U captions."""
    rows = rows_by_caption(captions)
    number = {caption: n for n, caption in enumerate(rows)}
    return torch.tensor([number[caption] for caption in captions]), torch.tensor([one[0] for one in rows.values()])


def candidates(own: Tensor, count: int, distractors: int, seed: int) -> Tensor | None:
    """Of `count` captions those that each image chooses from: int64 [N, 1 + D], its own one, `own` [N], first.

    D is `distractors`, or all others where there are fewer; None where there are no others.
    """
    check(distractors > 0, "distractors", distractors, "at least 1")
    if count < 2:
        return None
    ring = draws.permutation(count, seed, 0)  # the next ones in a random ring are a uniform draw of the others
    place = ring.argsort()[own]
    return ring[(place[:, None] + torch.arange(min(distractors, count - 1) + 1)) % count]


def per_prompt(
    images: Tensor, texts: Tensor, captions: list[str], ranks: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """By caption, in order of first appearance: "count", "clip_score" and, with ranks [N], "rank" (their median)."""
    scores = 100 * _cosines(images, texts).clamp(min=0)
    table = {}
    for caption, rows in rows_by_caption(captions).items():
        table[caption] = {"count": len(rows), "clip_score": float(scores[rows].mean())}
        if ranks is not None:
            table[caption]["rank"] = float(ranks[rows].quantile(0.5))
    return table


def _cosines(images: Tensor, texts: Tensor) -> Tensor:
    """float64 [N]."""
    if not len(images):
        raise UserError("no images to score")
    if not (images.isfinite().all() and texts.isfinite().all()):
        raise UserError("the CLIP vectors hold NaN or infinity; is the weights file damaged?")
    return cosine_similarity(images.double(), texts.double(), dim=1)
