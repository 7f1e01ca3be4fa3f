"""Neighbours: against torch-fidelity, against the definitions by hand, and where rows are equal."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from evaluation.metrics import distances
from evaluation.metrics.neighbours import authenticity, manifolds, nearest
from toolkit.errors import UserError


def draw(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture(params=[(2048, 4096), (7, 11)], ids=["one block", "many blocks"])
def block_size(request, monkeypatch):
    monkeypatch.setattr(distances, "ROWS", request.param[0])
    monkeypatch.setattr(distances, "COLUMNS", request.param[1])


@pytest.mark.parametrize(("n", "m"), [(200, 200), (150, 60)])
def test_precision_and_recall_equal_torch_fidelity(n, m, block_size):
    real, fake = draw(n, 10, 0).relu(), draw(m, 10, 1, shift=0.6).relu()
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    found = manifolds(real, fake)
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.05 < found.recall < 0.95 and 0.05 < found.precision < 0.95  # at the ends anything would agree


def by_definition(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    """Density and coverage, Naeem et al. 2020, equations 4 and 5."""
    own = torch.stack([torch.stack([(a - b).norm() for b in real]) for a in real])
    radii = own.sort(dim=1).values[:, k]
    inside = torch.stack([torch.stack([(x - y).norm() <= r for x, r in zip(real, radii, strict=True)]) for y in fake])
    return int(inside.sum()) / (k * len(fake)), float(inside.any(dim=0).double().mean())


def test_density_and_coverage_by_definition(block_size):
    real, fake = draw(40, 6, 2).double(), draw(30, 6, 3, shift=0.3).double()
    found = manifolds(real, fake)
    assert (found.density, found.coverage) == pytest.approx(by_definition(real, fake, 5), rel=1e-12)
    assert 0 < found.coverage < 1


def test_a_set_against_itself_covers_everything():
    x = draw(50, 6, 4)
    found = manifolds(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx((50 * 5 + 50) / (5 * 50))  # the 5 others of each ball and its centre


def test_far_apart_nothing_is_covered():
    assert manifolds(draw(50, 6, 4), draw(50, 6, 5, shift=100.0)) == (0, 0, 0, 0)


def test_one_image_over_and_over_is_precise_and_covers_little():
    real = draw(200, 6, 6)
    found = manifolds(real, real[:1].repeat(100, 1))
    assert found.precision == 1 and found.recall == 1 / 200 and found.coverage < 0.1


def test_rims_are_inside_where_distances_are_equal(block_size):
    """On a line of equal steps, where rounding pushes half of the neighbours out of each other's balls."""
    step = 0.1 * torch.ones(1, 3, dtype=torch.float64)
    line = torch.arange(12)[:, None] * step + 1000
    found = manifolds(line, line + step, k=1, density_k=1)
    assert (found.precision, found.recall) == (1, 1)  # each step is the radius: the last one lies on a rim
    assert found.density == pytest.approx((3 * 10 + 2 + 1) / 12) and found.coverage == 1


def test_balls_without_extent_hold_their_equals(block_size):
    """Every image occurs six times, so all radii are 0; rounding must not tell equals apart."""
    points = 50 + draw(30, 64, 12)
    assert manifolds(points.repeat(6, 1), points.repeat(6, 1).flip(0)) == (1, 1, 6 / 5, 1)
    assert manifolds(points.repeat(6, 1), 1 + points.repeat(6, 1)) == (0, 0, 0, 0)


def test_nearest_against_all_pairs(block_size):
    queries, bank = draw(33, 5, 7), draw(57, 5, 8)
    expected = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1)
    found = nearest(queries, bank, 4)
    assert torch.equal(found.indices, expected.indices[:, :4])
    assert torch.allclose(found.distances, expected.values[:, :4], rtol=1e-12)


def test_copies_are_found_at_exactly_zero(block_size):
    """Far from the origin and close together: products in float32 would see noise only."""
    bank = 1000 + 1e-2 * draw(300, 64, 9)
    assert bank.unique(dim=0).shape == bank.shape
    found = nearest(bank.flip(0), bank)
    assert torch.equal(found.indices[:, 0], torch.arange(299, -1, -1)) and not found.distances.any()
    near = nearest(bank[:20] + torch.tensor(1e-3), bank).distances
    expected = (bank[:20] + torch.tensor(1e-3)).double() - bank[:20].double()
    assert torch.allclose(near[:, 0], expected.norm(dim=1), rtol=1e-12) and near.all()


def test_equal_distances_give_the_lower_number():
    assert nearest(torch.zeros(1, 2), torch.ones(4, 2), 4).indices.tolist() == [[0, 1, 2, 3]]


def test_authenticity_by_hand(block_size):
    training = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [12.0, 0.0]])
    fake = torch.tensor([[0.0, 0.5], [-1.0, 0.0], [10.0, 1.9], [10.0, -2.0], [12.0, 0.0]])
    # nearest training image, its own nearest:  .5 < 1,  1 = 1,  1.9 < 2,  2 = 2,  a copy
    assert authenticity(training, fake) == pytest.approx(2 / 5)


def test_copies_are_never_authentic_and_fresh_draws_are_to_one_half():
    training = draw(1000, 4, 10)
    assert authenticity(training, training[:300]) == 0
    assert authenticity(training.repeat(2, 1), training[:300]) == 0  # each occurs twice: its own nearest is at 0 too
    assert authenticity(training, draw(1000, 4, 11)) == pytest.approx(0.5, abs=0.08)
    assert authenticity(training, training + 1e-3) < 0.01


def test_refusals():
    with pytest.raises(UserError, match="precision and recall needs at least 4"):
        manifolds(draw(9, 3, 0), draw(3, 3, 1))
    with pytest.raises(UserError, match="density and coverage needs at least 6"):
        manifolds(draw(5, 3, 0), draw(9, 3, 1))
    with pytest.raises(UserError, match="at least 4"):
        nearest(draw(9, 3, 0), draw(3, 3, 1), 4)
    with pytest.raises(UserError, match="authenticity needs at least 2"):
        authenticity(draw(1, 3, 0), draw(3, 3, 1))
    with pytest.raises(UserError, match="NaN"):
        manifolds(draw(9, 3, 0), draw(9, 3, 1) / 0)
    assert nearest(draw(1, 3, 0), draw(9, 3, 1), 4).distances.shape == (1, 4)
