"""Scores by nearest neighbours: precision, recall, density, coverage, and copies of training images."""

from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.metrics.distances import blocks
from evaluation.metrics.features import check_features

PRECISION_K = 3
DENSITY_K = 5
TIE = 1 + 1e-9
"""A radius is the distance to some neighbour; the same distance computed in another block may round upwards."""


class Neighbours(NamedTuple):
    """The k nearest of each query, nearest first."""

    distances: Tensor
    """float64 [Q, k], Euclidean; exactly 0 for equal rows."""
    indices: Tensor
    """int64 [Q, k] into the bank."""


class Manifolds(NamedTuple):
    """How the balls around the images of one side, as far as a near neighbour, cover the other side."""

    precision: float
    """Share of fake images inside any real image's ball, 0..1."""
    recall: float
    """Share of real images inside any fake image's ball, 0..1."""
    density: float
    """Real balls that a fake image lies in, over k: around 1 for equal distributions; above it is possible."""
    coverage: float
    """Share of real images whose ball holds a fake image, 0..1."""


def nearest(queries: Tensor, bank: Tensor, k: int = 1) -> Neighbours:
    """The k rows of bank [M, C] nearest to each query [Q, C]. UserError if the bank has fewer than k."""
    check_features(bank, fewest=k, metric=f"a search for {k} neighbours")
    check_features(queries, bank, fewest=1, metric="a search for neighbours")
    indices = _nearest(queries, bank, k)[1].sort(dim=1).values
    gaps = [queries.double() - bank[column].double() for column in indices.T]  # not by products: exact for copies
    order = torch.stack([gap.square().sum(dim=1).sqrt() for gap in gaps], dim=1).sort(dim=1, stable=True)
    return Neighbours(order.values, indices.gather(1, order.indices))


def manifolds(real: Tensor, fake: Tensor, k: int = PRECISION_K, density_k: int = DENSITY_K) -> Manifolds:
    """Features [N, C] and [M, C] -> precision and recall with balls as far as the k-th other image of the same side,
    density and coverage with the density_k-th of the real side. All distances are computed once.

    Precision, recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991), equal to torch-fidelity's. Density, coverage: Naeem
    et al. 2020 (arXiv:2002.09797). An image on the rim is inside. All depend on N: compare only values at equal N.
    UserError where a side has not more images than the neighbour asked for.
    """
    check_features(real, fake, fewest=k + 1, metric="precision and recall")
    check_features(real, fewest=density_k + 1, metric="density and coverage")
    of_real = _radii(real, max(k, density_k))
    real_rim, wide_rim, fake_rim = of_real[:, k - 1], of_real[:, density_k - 1], _radii(fake, k)[:, k - 1]
    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    inside = 0
    for rows, columns, squared in blocks(fake, real):
        precise[rows] |= (squared <= real_rim[columns]).any(dim=1)
        recalled[columns] |= (squared <= fake_rim[rows, None]).any(dim=0)
        wide = squared <= wide_rim[columns]
        covered[columns] |= wide.any(dim=0)
        inside += int(wide.sum())
    shares = [float(part.double().mean()) for part in (precise, recalled, covered)]
    return Manifolds(shares[0], shares[1], inside / (density_k * len(fake)), shares[2])


def authenticity(training: Tensor, fake: Tensor) -> float:
    """Share of fake images, 0..1, that are no closer to their nearest training image than that one's own nearest.

    Alaa et al. 2022 (arXiv:2102.08921, section 3.3). Around one half for fresh draws of the training distribution, 0
    for copies: an image at distance 0 is a copy even of a training image that occurs twice. UserError below 2
    training images.
    """
    check_features(training, fewest=2, metric="authenticity")
    found = nearest(fake, training)
    distance, index = found.distances[:, 0], found.indices[:, 0]
    chosen, which = index.unique(return_inverse=True)
    own = nearest(training[chosen], training, 2).distances[which, 1]  # the first is the image itself, or its equal
    return float(((distance > 0) & (distance >= own)).double().mean())


def _radii(features: Tensor, k: int) -> Tensor:
    """float64 [N, k]: squared distances of the k nearest other rows, a little widened; 0 where a row occurs again."""
    return _nearest(features, features, k, others=True)[0] * TIE


def _nearest(queries: Tensor, bank: Tensor, k: int, others: bool = False) -> tuple[Tensor, Tensor]:
    """Squared distances [Q, k], nearest first, and indices; `others` leaves each row itself out, not its equals."""
    best = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    indices = torch.zeros(len(queries), k, dtype=torch.int64)
    for rows, columns, squared in blocks(queries, bank):
        if others:
            start = max(rows.start, columns.start)
            own = torch.arange(start, max(start, min(rows.stop, columns.stop)))
            squared[own - rows.start, own - columns.start] = torch.inf
        found = squared.topk(min(k, squared.shape[1]), dim=1, largest=False)
        merged = torch.cat([best[rows], found.values], dim=1).topk(k, dim=1, largest=False)
        numbers = torch.cat([indices[rows], found.indices + columns.start], dim=1)
        best[rows], indices[rows] = merged.values, numbers.gather(1, merged.indices)
    return best, indices
