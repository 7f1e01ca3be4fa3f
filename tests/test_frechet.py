"""The Fréchet distance against closed forms, against scipy's matrix root and where covariances lack rank."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.metrics import frechet
from evaluation.metrics.frechet import Statistics, frechet_distance, statistics
from toolkit.errors import UserError


def draw(count: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return scale * torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def gaussian(mean: Tensor, covariance: Tensor) -> Statistics:
    return Statistics(mean.double(), covariance.double(), 1000)


def dense_reference(a: Statistics, b: Statistics) -> float:
    """The definition: eigenvalues of S1^1/2 S2 S1^1/2, the root by eigenvectors; right for every rank."""
    values, vectors = np.linalg.eigh(a.covariance.numpy())
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ b.covariance.numpy() @ root).clip(0)).sum()
    difference = (a.mean - b.mean).numpy()
    return difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared


def test_equal_covariances_leave_the_squared_distance_of_the_means():
    covariance = statistics(draw(200, 16, 0)).covariance
    shift = torch.linspace(-1, 2, 16)
    distance = frechet_distance(gaussian(torch.zeros(16), covariance), gaussian(shift, covariance))
    assert distance == pytest.approx(float(shift.double().square().sum()), rel=1e-12)


def test_diagonal_covariances():
    a, b = torch.tensor([1.0, 4.0, 9.0, 0.0]), torch.tensor([4.0, 4.0, 1.0, 2.0])
    distance = frechet_distance(gaussian(torch.zeros(4), a.diag()), gaussian(torch.zeros(4), b.diag()))
    assert distance == pytest.approx(1 + 0 + 4 + 2, rel=1e-12)  # sum of (sqrt a - sqrt b)^2


def test_covariances_that_do_not_commute():
    """In the plane tr (S1^1/2 S2 S1^1/2)^1/2 is (tr S1 S2 + 2 (det S1 S2)^1/2)^1/2."""
    a, b = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[5.0, 3.0], [3.0, 5.0]])
    assert not torch.equal(a @ b, b @ a)
    distance = frechet_distance(gaussian(torch.zeros(2), a), gaussian(torch.zeros(2), b))
    assert distance == pytest.approx(5 + 10 - 2 * (25 + 2 * (4 * 16) ** 0.5) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("count", [20, 500])
def test_a_shift_adds_its_squared_length(count):
    x, y, shift = draw(count, 64, 9), draw(count, 64, 10), torch.linspace(-1, 2, 64)
    y = y - y.mean(dim=0) + x.mean(dim=0)
    before, after = (frechet_distance(statistics(x), statistics(side)) for side in (y, y + shift))
    assert after - before == pytest.approx(float(shift.double().square().sum()), rel=1e-9)


def test_all_three_ways_agree(monkeypatch):
    """Eigenvalues, singular values of triangles, singular values of eigenvectors."""
    a, b = statistics(draw(400, 48, 11)), statistics(draw(300, 48, 12))
    expected = frechet_distance(a, b)
    monkeypatch.setattr(frechet, "ROOT_ERROR", 0.0)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    failing = (torch.zeros(48, 48), torch.tensor(1))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: failing)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_many_images_with_dead_features():
    """N > C and yet no full rank: the triangle cannot be had, or is noise."""
    x, y = draw(500, 32, 13), draw(500, 32, 14)
    dead = torch.zeros(500, 32)
    a, b = statistics(torch.cat([x, dead], dim=1)), statistics(torch.cat([y, dead], dim=1))
    expected = frechet_distance(statistics(x), statistics(y))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    doubled = [statistics(torch.cat([side, side], dim=1)) for side in (x, y)]  # covariance [[S, S], [S, S]]
    assert frechet_distance(*doubled) == pytest.approx(2 * expected, rel=1e-9)
    assert frechet_distance(doubled[0], doubled[0]) < 1e-6


def test_ill_conditioned_sets_against_themselves():
    spread = 10.0 ** torch.linspace(2, -8, 64)
    features = draw(500, 64, 15) * spread
    assert frechet_distance(statistics(features), statistics(features.flip(0))) < 1e-6
    shifted = frechet_distance(statistics(features), statistics(features + 1e-3))
    assert shifted == pytest.approx(64 * 1e-6, rel=1e-5)  # against traces of 1e6: roots of eigenvalues lose it


@pytest.mark.parametrize(("count", "width"), [(500, 64), (20, 64)])
def test_a_set_against_itself_is_zero_in_any_order(count, width):
    features = draw(count, width, 1, scale=10)
    distance = frechet_distance(statistics(features), statistics(features.flip(0)))
    assert 0 <= distance < 1e-6


@pytest.mark.parametrize("count", [20, 500])
def test_symmetric_and_free_of_order(count):
    x, y = draw(count, 64, 2), draw(count, 64, 3)
    there, back = (frechet_distance(statistics(p), statistics(q)) for p, q in ((x, y), (y, x)))
    assert there == pytest.approx(back, rel=1e-10)
    shuffled = x[torch.randperm(count, generator=torch.Generator().manual_seed(4))]
    assert frechet_distance(statistics(shuffled), statistics(y)) == pytest.approx(there, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_against_the_matrix_root_of_scipy(seed):
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    a, b = statistics(draw(400, 48, seed)), statistics(draw(300, 48, seed + 100, scale=1.3))
    shared = np.trace(sqrtm((a.covariance @ b.covariance).numpy()).real)
    means = float((a.mean - b.mean).square().sum())
    expected = means + float(a.covariance.trace() + b.covariance.trace()) - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n_a", "n_b"), [(30, 30), (30, 500), (500, 30), (2, 3)])
def test_fewer_images_than_features(n_a, n_b):
    a, b = statistics(draw(n_a, 96, 5)), statistics(draw(n_b, 96, 6) + 0.5)
    # The reference takes roots of eigenvalues, so it knows zeros to 1e-8 of the largest only.
    assert frechet_distance(a, b) == pytest.approx(dense_reference(a, b), rel=1e-6)


def test_a_constant_side_stays_finite():
    a, b = statistics(draw(50, 8, 7)), statistics(torch.full((50, 8), 3.0))
    means = float((a.mean - b.mean).square().sum())
    assert frechet_distance(a, b) == pytest.approx(means + float(a.covariance.trace()), rel=1e-12)
    assert frechet_distance(b, b) == 0


@pytest.mark.parametrize("count", [5, 40, 9000])
def test_statistics_are_numpys(count):
    features = draw(count, 7, 8).float()
    found = statistics(features)
    assert np.allclose(found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-10, atol=1e-12)
    assert np.allclose(found.mean, features.numpy().astype(np.float64).mean(0), rtol=1e-12)
    assert (found.mean.dtype, found.covariance.dtype, found.count) == (torch.float64, torch.float64, count)


def test_refusals():
    with pytest.raises(UserError, match="at least 2"):
        statistics(torch.ones(1, 4))
    with pytest.raises(UserError, match="NaN"):
        statistics(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(gaussian(torch.zeros(2), torch.eye(2)), gaussian(torch.zeros(2), torch.eye(2) / 0))
    with pytest.raises(UserError, match="width 4 and 5"):
        frechet_distance(statistics(draw(9, 4, 0)), statistics(draw(9, 5, 0)))
