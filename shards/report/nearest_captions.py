"""Different captions whose embeddings nearly coincide: what the generator can hardly tell apart."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 512


class CaptionPair(NamedTuple):
    """Positions of two captions and the cosine of their embeddings."""

    first: int
    second: int
    cosine: float


def nearest_pairs(vectors: Tensor, count: int) -> list[CaptionPair]:
    """float32 [N, E] of unit length -> up to `count` pairs of a caption and its nearest other one, the closest first.

    N x N products, BLOCK rows at a time: the caller bounds N. Cosines are rounded to 4 digits before they are ranked,
    so that the order does not hang on how a sum was split.
    """
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(vectors) if len(vectors) > 1 else 0, BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        rows = torch.arange(len(cosines))
        cosines[rows, rows + start] = -2  # itself
        best, nearest = (cosines * 1e4).round().max(dim=1)  # the first of equals
        for row, other, cosine in zip(rows.tolist(), nearest.tolist(), best.tolist(), strict=True):
            i, j = sorted((row + start, other))
            found[i, j] = cosine / 1e4
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [CaptionPair(i, j, cosine) for (i, j), cosine in ranked[:count]]
