"""The joint distance of images and captions: blind to nothing that the plain one sees, and to no wrong caption."""

import pytest
import torch
from torch import Tensor

from evaluation.metrics.frechet import frechet_distance, statistics
from evaluation.metrics.joint import joint_frechet_distance
from toolkit.errors import UserError


def pairs(count: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Images [N, 12] that follow their captions [N, 5] with some noise."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(count, 5, generator=generator)
    mixing = torch.randn(5, 12, generator=torch.Generator().manual_seed(99))
    return scale * (texts @ mixing + 0.3 * torch.randn(count, 12, generator=generator) + 1), texts


@pytest.mark.parametrize("count", [400, 15])
def test_shuffled_captions_raise_it_while_the_plain_one_stays(count):
    (real, real_texts), (fake, fake_texts) = pairs(400, 0), pairs(count, 1)
    order = torch.arange(count).roll(1)
    plain = [frechet_distance(statistics(real), statistics(side)) for side in (fake, fake[order])]
    assert plain[0] == pytest.approx(plain[1], rel=1e-9)
    matched = joint_frechet_distance(real, real_texts, fake, fake_texts)
    shuffled = joint_frechet_distance(real, real_texts, fake, fake_texts[order])
    assert shuffled > 2 * matched


def test_a_set_against_itself_is_zero():
    real, texts = pairs(100, 2)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert joint_frechet_distance(real, texts, real[order], texts[order]) < 1e-6


def test_it_is_the_distance_of_both_where_captions_have_the_weight_of_images():
    (real, real_texts), (fake, fake_texts) = pairs(300, 3), pairs(200, 4)
    alpha = float(real.double().norm(dim=1).mean() / real_texts.double().norm(dim=1).mean())
    both = [
        statistics(torch.cat([x.double(), alpha * t.double()], dim=1))
        for x, t in ((real, real_texts), (fake, fake_texts))
    ]
    expected = frechet_distance(*both)
    assert joint_frechet_distance(real, real_texts, fake, fake_texts) == pytest.approx(expected, rel=1e-9)
    for scale in (0.01, 100.0):  # the captions' scale drops out; that of the images is the distance's own unit
        assert joint_frechet_distance(real, scale * real_texts, fake, scale * fake_texts) == pytest.approx(
            expected, rel=1e-5
        )
        assert joint_frechet_distance(scale * real, real_texts, scale * fake, fake_texts) == pytest.approx(
            scale**2 * expected, rel=1e-5
        )


def test_a_shift_of_images_and_of_captions_by_closed_form():
    real, texts = pairs(300, 5)
    assert joint_frechet_distance(real, texts, real + 0.5, texts) == pytest.approx(12 * 0.25, rel=1e-6)
    alpha = float(real.double().norm(dim=1).mean() / texts.double().norm(dim=1).mean())
    assert joint_frechet_distance(real, texts, real, texts + 0.5) == pytest.approx(5 * 0.25 * alpha**2, rel=1e-6)


def test_refusals():
    real, texts = pairs(9, 6)
    with pytest.raises(UserError, match="9 images have 8 caption vectors"):
        joint_frechet_distance(real, texts[:8], real, texts)
    with pytest.raises(UserError, match="all zero"):
        joint_frechet_distance(real, 0 * texts, real, texts)
    with pytest.raises(UserError, match="width 5 and 4"):
        joint_frechet_distance(real, texts, real, texts[:, :4])
    with pytest.raises(UserError, match="needs at least 2"):
        joint_frechet_distance(real, texts, real[:1], texts[:1])
