"""Sliced Wasserstein distance: closed forms, scipy's distance in one dimension, and that worse images score worse."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn import functional as F

from toolkit.health import swd
from toolkit.health.swd import sliced_distance, sliced_wasserstein


def images(count: int, side: int, seed: int) -> Tensor:
    """Smooth coloured blots with a little grain, uint8 [N, 3, S, S]."""
    generator = torch.Generator().manual_seed(seed)
    blots = F.interpolate(torch.rand(count, 3, 5, 5, generator=generator), size=side, mode="bicubic")
    grain = 0.03 * torch.randn(count, 3, side, side, generator=generator)
    return as_bytes(60 + 140 * (blots + grain))


def as_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def test_equal_sets_score_zero_and_every_level_is_there():
    one = images(20, 64, 0)
    assert sliced_wasserstein(one, one) == {"swd_64": 0.0, "swd_32": 0.0, "swd_16": 0.0, "swd": 0.0}
    scores = sliced_wasserstein(one, images(20, 64, 1))
    assert scores["swd"] == pytest.approx((scores["swd_64"] + scores["swd_32"] + scores["swd_16"]) / 3)
    assert set(sliced_wasserstein(images(2, 16, 0), images(2, 16, 1))) == {"swd_16", "swd"}


def test_the_same_seed_gives_the_same_number_another_seed_nearly_so():
    one, two = images(64, 32, 0), as_bytes(images(64, 32, 1) * 0.8)
    first, again, other = (sliced_wasserstein(one, two, seed)["swd"] for seed in (3, 3, 4))
    assert first == again != other
    assert other == pytest.approx(first, rel=0.15)


def test_one_dimension_is_scipys_wasserstein_distance():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(500, 1, generator=generator), 0.3 + 2 * torch.rand(500, 1, generator=generator)
    expected = wasserstein_distance(a.flatten().numpy(), b.flatten().numpy())
    assert sliced_distance(a, b, torch.ones(1, 1)) == pytest.approx(expected, rel=1e-5)


def test_projections_are_averaged():
    """Two directions, one of which sees the shift by 3 whole, the other not at all; more than one block of them."""
    a = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    directions = torch.eye(2).repeat(1, swd.AT_ONCE)
    assert sliced_distance(a, a + torch.tensor([3.0, 0.0]), directions) == pytest.approx(1.5, rel=1e-6)


def test_a_grey_shift_has_a_closed_form():
    """Real images of one level, 16 px: patches differ from the fakes' by the constant d / deviation in each of the
    147 values, whose projection on a unit vector v is d / deviation * |sum v|."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 200, (8, 3, 16, 16), generator=generator).to(torch.uint8)
    score = sliced_wasserstein(real, real + 40)["swd"]
    deviation = swd._patches(real, 0, 0).std(dim=(0, 2), correction=0)
    directions = swd._directions(torch.zeros(1, 147), 0, 0)
    shift = (40 / deviation).repeat_interleave(49)
    assert score == pytest.approx(1000 * (shift @ directions).abs().mean().item(), rel=1e-5)


def blurred(some: Tensor, radius: int) -> Tensor:
    return as_bytes(F.avg_pool2d(F.pad(some.float(), (radius,) * 4, mode="reflect"), 2 * radius + 1, stride=1))


def noisy(some: Tensor, amount: int) -> Tensor:
    return as_bytes(some + amount * torch.randn(some.shape, generator=torch.Generator().manual_seed(1)))


def darker(some: Tensor, amount: int) -> Tensor:
    return as_bytes(some.float() - amount)


def flatter(some: Tensor, amount: int) -> Tensor:
    return as_bytes(130 + (some.float() - 130) * (1 - amount / 10))


@pytest.mark.parametrize("worsen", [blurred, noisy, darker, flatter])
def test_the_worse_the_images_the_higher_the_score(worsen):
    """Against other images of the same kind; the clean ones score lowest. A tint and low contrast count too."""
    real, others = images(64, 32, 0), images(64, 32, 1)
    clean = sliced_wasserstein(real, others)["swd"]
    worse = [sliced_wasserstein(real, worsen(others, amount))["swd"] for amount in (1, 4, 8)]
    assert clean < worse[0] < worse[1] < worse[2] and worse[2] > 3 * clean


def test_two_halves_of_one_set_are_close_and_closer_with_more_images():
    few, many = (sliced_wasserstein(images(n, 32, 0), images(n, 32, 1))["swd"] for n in (16, 256))
    far = sliced_wasserstein(images(256, 32, 0), images(256, 32, 1) // 2)["swd"]
    assert many < 0.5 * few and many < 0.1 * far


def test_the_filter_is_scipys_binomial_one_and_the_pyramid_adds_up():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    expected = convolve(image[1, 2].numpy(), taps, mode="mirror")[::2, ::2]
    assert np.abs(swd._halved(image)[1, 2].numpy() - expected).max() < 1e-12
    sharp, smooth = swd.laplacian_level(image, 0), swd.laplacian_level(image, 1)
    assert smooth.shape == (2, 3, 16, 16) and (sharp + swd._doubled(smooth) - image).abs().max() < 1e-12
    assert swd.laplacian_level(torch.full((1, 1, 32, 32), 7.0), 0)[..., 2:-2, 2:-2].abs().max() < 1e-5


def test_patches_are_cut_where_they_are_drawn():
    """In an image whose value is its own pixel number each patch must be a 7x7 block of it, in each channel."""
    ramp = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16).to(torch.uint8)
    patches = swd._patches(ramp, 0, 0)
    assert patches.shape == (128, 3, 49)
    block = (torch.arange(7)[:, None] * 16 + torch.arange(7)).flatten()
    assert torch.equal(patches - patches[:, :, :1], block.float().expand(128, 3, 49))
    assert len(set(patches[:, 0, 0].tolist())) > 50


def test_sets_of_other_shapes_are_refused():
    one = images(4, 16, 0)
    for real, fake in ((one, one[:3]), (one[:, :1], one[:, :1]), (one[:0], one[:0]), (one[..., :8], one[..., :8])):
        with pytest.raises(ValueError):
            sliced_wasserstein(real, fake)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    one, two = images(64, 64, 0), images(64, 64, 1)
    cpu, gpu = sliced_wasserstein(one, two), sliced_wasserstein(one.cuda(), two.cuda())
    assert gpu == pytest.approx(cpu, rel=1e-2)
