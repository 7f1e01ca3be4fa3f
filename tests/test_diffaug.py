"""DiffAugment: values, gradients, and what each transform may not change."""

import pytest
import torch

from toolkit.networks import diffaug

ALL = ("color", "translation", "cutout", "flip")


def images(n=4, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_neutral_numbers_change_nothing():
    x = images()
    # brightness 0, saturation and contrast 1; no shift; no flip
    torch.testing.assert_close(diffaug.color(x, torch.tensor([[0.5, 0.5, 0.5]]).expand(4, 3)), x)
    torch.testing.assert_close(diffaug.translation(x, torch.full((4, 2), 0.5)), x)
    torch.testing.assert_close(diffaug.flip(x, torch.zeros(4, 1)), x)


def test_color_by_hand():
    x = torch.full((1, 3, 2, 2), 0.2)
    x[:, 0] = 0.8  # grey value of every pixel: 0.4
    grey = diffaug.color(x, torch.tensor([[0.5, 0.0, 0.5]]))
    torch.testing.assert_close(grey, torch.full_like(x, 0.4))
    brighter = diffaug.color(x, torch.tensor([[0.75, 0.5, 0.5]]))
    torch.testing.assert_close(brighter, x + 0.25)


def test_translation_moves_by_whole_pixels_and_pads_with_zero():
    x = images(1, 8)
    moved = diffaug.translation(x, torch.tensor([[0.99, 0.5]]))  # most: one pixel of eight
    torch.testing.assert_close(moved[:, :, :-1], x[:, :, 1:])
    assert (moved[:, :, -1] == 0).all()


def test_cutout_blanks_a_quarter_in_the_middle():
    x = torch.ones(1, 3, 8, 8)
    assert diffaug.cutout(x, torch.tensor([[0.5, 0.5]])).sum().item() == 3 * (64 - 16)
    assert diffaug.cutout(x, torch.tensor([[0.0, 0.0]])).sum().item() == 3 * (64 - 4)


def test_flip_is_an_involution():
    x, u = images(), torch.tensor([[0.1], [0.9], [0.9], [0.1]])
    flipped = diffaug.flip(x, u)
    torch.testing.assert_close(flipped[1], x[1].flip(-1))
    torch.testing.assert_close(diffaug.flip(flipped, u), x)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_images(name):
    x = images(2, 6).double().requires_grad_()
    width = diffaug.parameter_count((name,))
    u = torch.rand(2, width, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(lambda x: diffaug.augment(x, (name,), u), x)


def test_every_image_has_its_own_numbers():
    """Row i of the result depends on row i of images and numbers only: so a batch can be split anywhere."""
    x, u = images(4), torch.rand(4, diffaug.parameter_count(ALL), generator=torch.Generator().manual_seed(2))
    whole = diffaug.augment(x, ALL, u)
    halves = torch.cat([diffaug.augment(x[i : i + 2], ALL, u[i : i + 2]) for i in (0, 2)])
    torch.testing.assert_close(whole, halves)


def test_empty_policy_is_identity():
    x = images()
    assert diffaug.augment(x, (), torch.zeros(4, 0)) is x


def test_each_transform_changes_only_the_images_it_is_applied_to():
    x, u = images(4), torch.rand(4, diffaug.parameter_count(ALL), generator=torch.Generator().manual_seed(2))
    applied = torch.zeros(4, len(ALL), dtype=torch.bool)
    applied[1, 0] = applied[2, 3] = True
    mixed = diffaug.augment(x, ALL, u, applied)
    assert torch.equal(mixed[0], x[0]) and torch.equal(mixed[3], x[3])
    assert torch.equal(mixed[1:2], diffaug.color(x[1:2], u[1:2, :3]))
    assert torch.equal(mixed[2:3], diffaug.flip(x[2:3], u[2:3, 7:]))
    assert torch.equal(diffaug.augment(x, ALL, u, torch.ones_like(applied)), diffaug.augment(x, ALL, u))
