"""KID: equal to torch-fidelity, to the definition over all pairs, and with an interval that holds what it says."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluation.metrics import kernel_distance as module
from evaluation.metrics.kernel_distance import kernel_distance
from toolkit.errors import UserError


def draw(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(a: Tensor, b: Tensor) -> float:
    """The U-statistic of the kernel over all pairs of different images."""
    kernels = [(x.double() @ y.double().T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    own = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    return float(own[0] + own[1] - 2 * kernels[2].mean())


@pytest.mark.parametrize(("n", "m", "size"), [(300, 700, 100), (600, 400, 400), (1200, 1200, 1000)])
def test_equal_to_torch_fidelity(n, m, size):
    a, b = draw(n, 40, 0).relu(), draw(m, 40, 1, shift=0.1).relu()
    theirs = kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=size, verbose=False)
    found = kernel_distance(a, b, subsets=20, subset_size=size)
    assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert found.std == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-6)
    exact = kid_features_to_metric(a.double(), b.double(), kid_subsets=20, kid_subset_size=size, verbose=False)
    ours = kernel_distance(a.double(), b.double(), subsets=20, subset_size=size)
    assert [*ours[:2]] == pytest.approx([*exact.values()], rel=1e-9, abs=1e-13)


def test_one_subset_of_everything_is_the_definition():
    a, b = draw(280, 24, 2).double(), draw(280, 24, 3, shift=0.2).double()
    found = kernel_distance(a, b, subsets=1, subset_size=280)
    assert found.mean == pytest.approx(by_definition(a, b), rel=1e-10) and found.std == 0


@pytest.mark.parametrize("chunk", [7, 256])
def test_the_interval_is_the_jackknife_by_hand(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    a, b = draw(20, 6, 4).double(), draw(30, 6, 5, shift=0.3).double()
    variance = 0.0
    for side in (0, 1):
        n = len((a, b)[side])
        kept = [torch.arange(n) != i for i in range(n)]
        left_out = torch.tensor([by_definition(a[k], b) if side == 0 else by_definition(a, b[k]) for k in kept])
        variance += float((left_out - left_out.mean()).square().sum()) * (n - 1) / n
    found = kernel_distance(a, b, subsets=50)
    half = 1.96 * (variance + found.std**2 / 50) ** 0.5
    assert [found.low, found.high] == pytest.approx([found.mean - half, found.mean + half], rel=1e-5)


def true_distance(shift: float, width: int) -> float:
    """The distance of N(0, 1) from N(shift, 1) in `width` independent features, in closed form.

    E (x.y / C + 1)^3 needs three moments of x.y; its cumulants are those of one feature's product, times C.
    """

    def kernel(u: float, v: float) -> float:
        first, second, third = u * v, (1 + u * u) * (1 + v * v), (u**3 + 3 * u) * (v**3 + 3 * v)
        k1, k2, k3 = first, second - first**2, third - 3 * second * first + 2 * first**3
        mean, variance, skew = width * k1, width * k2, width * k3
        square, cube = variance + mean**2, skew + 3 * variance * mean + mean**3
        return cube / width**3 + 3 * square / width**2 + 3 * mean / width + 1

    return kernel(0, 0) + kernel(shift, shift) - 2 * kernel(0, shift)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("count", [60, 250])
def test_the_interval_covers_the_truth_and_the_mean_is_unbiased(shift, count):
    truth, width, repetitions = true_distance(shift, 8), 8, 200
    found = [
        kernel_distance(draw(count, width, 2 * i + 1000), draw(count, width, 2 * i + 1001, shift), subsets=20)
        for i in range(repetitions)
    ]
    covered = sum(f.low <= truth <= f.high for f in found) / repetitions
    assert 0.85 <= covered <= 0.995
    means = torch.tensor([f.mean for f in found]).double()
    assert abs(float(means.mean()) - truth) < 4 * float(means.std()) / repetitions**0.5


def test_subsets_adapt_to_few_images():
    assert [kernel_distance(draw(n, 4, 6), draw(2500, 4, 7), subsets=2).subset_size for n in (4, 90, 1999, 2400)] == [
        2,
        45,
        999,
        1000,
    ]


def test_refusals():
    with pytest.raises(UserError, match="needs at least 4"):
        kernel_distance(draw(3, 4, 0), draw(9, 4, 1))
    with pytest.raises(UserError, match="kid_subset_size is 10"):
        kernel_distance(draw(9, 4, 0), draw(20, 4, 1), subset_size=10)
    with pytest.raises(UserError, match="NaN"):
        kernel_distance(draw(9, 4, 0), draw(9, 4, 1) / 0)
    with pytest.raises(UserError, match="width 4 and 5"):
        kernel_distance(draw(9, 4, 0), draw(9, 5, 1))
