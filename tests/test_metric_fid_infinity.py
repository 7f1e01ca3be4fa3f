"""FID extrapolated to infinity: a straight line is met exactly, and the bias of few images goes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.metrics import fid_infinity as module
from evaluation.metrics.fid_infinity import fewest_images, fid_infinity
from evaluation.metrics.frechet import Statistics, frechet_distance, statistics
from toolkit.errors import UserError

WIDTH = 48
SPREAD = torch.logspace(0.5, -1, WIDTH, dtype=torch.float64)
REAL = Statistics(torch.zeros(WIDTH, dtype=torch.float64), SPREAD.square().diag(), 10**9)


def draw(count: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * SPREAD + shift


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_bias_of_few_images_goes(shift):
    truth, repetitions = WIDTH * shift**2, 20
    sets = [draw(400, seed, shift) for seed in range(repetitions)]
    biased = torch.tensor([frechet_distance(REAL, statistics(x)) - truth for x in sets])
    found = torch.tensor([fid_infinity(REAL, x).value - truth for x in sets])
    assert biased.mean() > 5 * biased.std() / repetitions**0.5  # else there is nothing to take away
    assert abs(found.mean()) < 0.2 * biased.mean()


def test_points_are_frechet_distances_of_subsets():
    found = fid_infinity(REAL, draw(300, 1), points=5)
    sizes = [size for size, _ in found.points]
    assert (sizes[0], sizes[-1]) == (300, 150)
    assert np.diff(1 / np.array(sizes)) == pytest.approx(1 / 1200, rel=0.02)
    assert found.points[0][1] == pytest.approx(frechet_distance(REAL, statistics(draw(300, 1))), rel=1e-12)
    slope, intercept = np.polyfit([1 / n for n in sizes], [value for _, value in found.points], 1)
    assert slope > 0 and found.value == pytest.approx(intercept, rel=1e-9)


def test_the_fit_of_a_line_with_noise(monkeypatch):
    exact = iter(7 + 900 / size for size in [round(1 / x) for x in np.linspace(1 / 300, 2 / 300, 8)])
    monkeypatch.setattr(module, "frechet_distance", lambda a, b: next(exact))
    found = fid_infinity(REAL, draw(300, 2))
    assert found.value == pytest.approx(7, rel=1e-9) and found.error < 1e-9
    x, y = np.arange(8.0), np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    _, covariance = np.polyfit(x, y, 1, cov=True)
    assert module._intercept(x, y)[1] == pytest.approx(covariance[1, 1] ** 0.5, rel=1e-9)


def test_the_seed_draws_the_subsets():
    x = draw(300, 3)
    assert fid_infinity(REAL, x, seed=1) == fid_infinity(REAL, x, seed=1) != fid_infinity(REAL, x, seed=2)


def test_refusals():
    assert (fewest_images(64), fewest_images(2048)) == (128, 4096)
    with pytest.raises(UserError, match="needs 128 for 48 features"):
        fid_infinity(REAL, draw(127, 0))
    with pytest.raises(UserError, match="points is 2"):
        fid_infinity(REAL, draw(200, 0), points=2)
