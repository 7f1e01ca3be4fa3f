"""The probe of the sample images: distances with known answers, and what must not change them."""

import math

import pytest
import torch

from toolkit.run_folder.probe import Probe, layout, probe


def flat(levels: list, size: int = 32) -> torch.Tensor:
    """uint8 [..., 3, size, size]: one grey level an image, so that the distance of two is |a - b| / 255."""
    return torch.tensor(levels, dtype=torch.uint8)[..., None, None, None].expand(
        *torch.tensor(levels).shape, 3, size, size
    )


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


REALS = flat([0, 60, 120])  # distances 60, 60, 120: mean 80


def test_equal_images_have_distance_zero():
    assert probe(flat([[7, 7], [7, 7], [7, 7]]), REALS) == Probe(0.0, 0.0, 0.0)


def test_grey_levels_have_the_distances_of_their_numbers():
    """By noise: 20, 40, 0 -> 20. By prompts: first column 100, 200, 100; second 80, 220, 140 -> mean 140."""
    found = probe(flat([[0, 20], [100, 140], [200, 200]]), REALS)
    columns = [[0, 100, 200], [20, 140, 200]]
    by_prompt = sum(abs(c[i] - c[j]) for c in columns for i, j in ((0, 1), (0, 2), (1, 2))) / 6
    assert found.diversity == pytest.approx(20 / 80)
    assert found.text_sensitivity == pytest.approx(by_prompt / 80)


def test_noise_alone_and_text_alone_are_told_apart():
    assert probe(flat([[0, 80], [0, 80], [0, 80]]), REALS) == Probe(pytest.approx(1.0), 0.0, 0.0)
    assert probe(flat([[0, 0], [60, 60], [120, 120]]), REALS) == Probe(0.0, pytest.approx(1.0), 0.0)


def test_real_images_as_samples_score_one():
    """Drawn from one distribution, whatever the prompt and the noise: both are 1 up to sampling."""
    coarse = noise(7 * 12, 3, 4, 4).repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2).view(12, 7, 3, 32, 32)
    found = probe(coarse[:, 1:], coarse[:, 0])
    assert found.diversity == pytest.approx(1, abs=0.03) and found.text_sensitivity == pytest.approx(1, abs=0.03)


def test_noise_of_pixels_counts_little_and_colours_count():
    """White noise of standard deviation s leaves s / 4 in means of 4 x 4 pixels; the level of an image stays whole."""
    generator = torch.Generator().manual_seed(1)
    speckled = 128 + 20 * torch.randn(2, 1, 3, 64, 64, generator=generator)
    speckled = speckled.round().to(torch.uint8).transpose(0, 1)  # one prompt's two images
    images = torch.cat([speckled, speckled])
    found = probe(images, flat([0, 255], 64))
    assert found.diversity == pytest.approx(20 / 255 * math.sqrt(2) / 4, rel=0.05) and found.text_sensitivity == 0
    assert layout(flat([51], 64)).numpy() == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize("size, cells", [(16, 4), (32, 8), (64, 16), (256, 16)])
def test_the_layout_has_areas_of_at_least_four_by_four_pixels(size, cells):
    assert layout(flat([1, 2], size)).shape == (2, 3 * cells * cells)


def test_the_order_of_prompts_and_noise_does_not_matter():
    images, reals = noise(4, 3, 3, 16, 16), noise(4, 3, 16, 16, seed=1)
    shuffled = probe(images[[2, 0, 3, 1]][:, [1, 2, 0]], reals[[2, 0, 3, 1]])
    assert shuffled == pytest.approx(probe(images, reals), rel=1e-12)


def test_what_cannot_be_told_is_none():
    assert probe(noise(3, 1, 3, 32, 32), REALS).diversity is None
    assert probe(flat([[0], [60], [120]]), REALS).text_sensitivity == pytest.approx(1)
    for one in (probe(noise(1, 4, 3, 32, 32), REALS[:1]), probe(noise(3, 2, 3, 32, 32), flat([9, 9, 9]))):
        assert one[:2] == (None, None) and abs(one.same_layout) < 0.1  # needs no unit
    with pytest.raises(ValueError, match=r"\[2, 3, 32, 32\]"):
        probe(noise(3, 2, 3, 32, 32), REALS[:2])


def test_one_layout_a_prompt_whatever_its_colours():
    """Prompt by prompt: the same pattern brighter and in red alone, and two patterns that share nothing."""
    pattern = noise(3, 16, 16) // 2
    twins = torch.stack([pattern, pattern + 60])
    others = noise(2, 3, 16, 16, seed=1)
    images = torch.stack([twins, others])
    of_others = probe(others[None], others[:1]).same_layout
    assert abs(of_others) < 0.2
    assert probe(images, noise(2, 3, 16, 16)).same_layout == pytest.approx((1 + of_others) / 2, abs=1e-9)
    assert probe(images[:, :1], noise(2, 3, 16, 16)).same_layout is None
