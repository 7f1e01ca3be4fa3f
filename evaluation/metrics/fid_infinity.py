"""FID without the bias of a finite number of images: extrapolated from several numbers of them."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from evaluation.metrics.features import check_features
from evaluation.metrics.frechet import Statistics, frechet_distance, statistics
from toolkit import draws
from toolkit.errors import UserError, check

POINTS = 8
FEWEST = 128
IMAGES_PER_FEATURE = 2
"""Below, FID is no line in 1/N: at 2 a line takes three quarters of the bias of the worst, round, Gaussian away."""


class FidInfinity(NamedTuple):
    value: float
    """Where the line meets 1/N = 0; may fall below 0 between equal distributions."""
    error: float
    """Standard error of that by the scatter around the line; knows nothing of the images that were not drawn."""
    points: list[tuple[int, float]]
    """(N, FID at N), most images first."""


def fewest_images(width: int) -> int:
    """How many images `fid_infinity` asks for with features of this width."""
    return max(FEWEST, IMAGES_PER_FEATURE * width)


def fid_infinity(real: Statistics, fake: Tensor, points: int = POINTS, seed: int = 0) -> FidInfinity:
    """Features [N, C] of the fake side -> FID as N of the fake side goes to infinity; the real side stays as it is.

    Chong & Forsyth 2020 (arXiv:1911.07023): E[FID] is linear in 1/N. `points` subsets, each drawn anew, with 1/N
    evenly from that of all images to that of half of them; least squares. The real side's own bias remains. UserError
    below max(128, 2 C) images and below 3 points.
    """
    check(points >= 3, "points", points, "at least 3")
    check_features(fake, fewest=2, metric="FID infinity")
    count, width = fake.shape
    if count < fewest_images(width):
        raise UserError(
            f"{count} images: FID infinity needs {fewest_images(width)} for {width} features, or it is no line in "
            "1/N; raise --count, or report KID, which has no such bias"
        )
    sizes = [round(1 / inverse) for inverse in np.linspace(1 / count, 2 / count, points)]
    values = [
        frechet_distance(real, statistics(fake[draws.permutation(count, seed, point)[:size]]))
        for point, size in enumerate(sizes)
    ]
    value, error = _intercept(1 / np.array(sizes), np.array(values))
    return FidInfinity(value, error, list(zip(sizes, values, strict=True)))


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Of the least-squares line, and its standard error (n - 2 degrees of freedom)."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    intercept = y.mean() - slope * x.mean()
    residual = ((y - intercept - slope * x) ** 2).sum() / (len(x) - 2)
    return float(intercept), float((residual * (1 / len(x) + x.mean() ** 2 / spread)) ** 0.5)
