"""Losses against values computed by hand."""

import torch

from toolkit.networks import losses


def test_hinge_values():
    real, fake = torch.tensor([[2.0], [0.5], [-3.0]]), torch.tensor([[-2.0], [0.5], [2.0]])
    assert losses.discriminator_loss(real, fake, "hinge").tolist() == [0.0, 0.5 + 1.5, 4.0 + 3.0]
    assert losses.generator_loss(fake, None, "hinge").tolist() == [2.0, -0.5, -2.0]


def test_nonsaturating_values():
    real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
    of_d, of_g = torch.tensor([0.693147 + 1.313262, 0.313262 + 0.693147]), torch.tensor([0.313262, 0.693147])
    torch.testing.assert_close(losses.discriminator_loss(real, fake, "nonsaturating"), of_d, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.generator_loss(fake, None, "nonsaturating"), of_g, atol=1e-5, rtol=0)


def test_relativistic_values_depend_on_the_difference_of_a_pair_only():
    real, fake = torch.tensor([[3.0], [-1.0]]), torch.tensor([[2.0], [1.0]])
    of_d, of_g = torch.tensor([0.313262, 2.126928]), torch.tensor([1.313262, 0.126928])  # softplus(-1, 2), (1, -2)
    for level in (0.0, 5.0):
        d = losses.discriminator_loss(real + level, fake + level, "relativistic")
        g = losses.generator_loss(fake + level, real + level, "relativistic")
        torch.testing.assert_close(d, of_d, atol=1e-5, rtol=0)
        torch.testing.assert_close(g, of_g, atol=1e-5, rtol=0)


def test_scales_are_averaged():
    zero = torch.zeros(1, 2)
    assert losses.discriminator_loss(torch.tensor([[0.0, 1.0]]), zero, "hinge").tolist() == [0.5 + 1.0]


def test_lecam_pulls_each_side_to_the_other_sides_anchor():
    real, fake = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 1.0]])
    expected = ((2 + 0.5) ** 2 + (0 + 0.5) ** 2 + (-1 - 1) ** 2 + (1 - 1) ** 2) / 2  # a_real 1, a_fake -0.5
    assert losses.lecam_penalty(real, fake, (1.0, -0.5)).tolist() == [expected]


def test_mismatch_loss_compares_captions_of_one_image():
    matched, mismatched = torch.tensor([[1.0], [-4.0], [2.0]]), torch.tensor([[0.5], [-6.0], [3.0]])
    assert losses.mismatch_loss(matched, mismatched, "hinge").tolist() == [0.5, 0.0, 2.0]
    expected = torch.tensor([0.5, 2.0, -1.0]).neg().exp().log1p()  # softplus of minus the difference
    torch.testing.assert_close(losses.mismatch_loss(matched, mismatched, "nonsaturating"), expected)


def test_mismatch_loss_leaves_the_level_of_the_logits_alone():
    level = torch.zeros(1, requires_grad=True)
    losses.mismatch_loss(torch.tensor([[0.2]]) + level, torch.tensor([[0.1]]) + level, "hinge").sum().backward()
    assert level.grad.item() == 0


def test_r1_of_a_linear_discriminator():
    """D(x) = w.x has gradient w everywhere: R1 = |w|^2 / 2, and its gradient with respect to w is w."""
    w = torch.randn(3 * 4 * 4, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = losses.gradient_penalty((images.flatten(1) @ w)[:, None], images)
    assert penalty.shape == (5,) and penalty.requires_grad
    torch.testing.assert_close(penalty, (w.square().sum() / 2).expand(5))
    penalty.mean().backward()
    torch.testing.assert_close(w.grad, w.detach())


def test_r1_is_per_image_and_of_the_mean_over_scales():
    images = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).requires_grad_()
    logits = torch.stack([images.flatten().square(), 3 * images.flatten()], dim=1)  # d mean / dx = (2x + 3) / 2
    torch.testing.assert_close(losses.gradient_penalty(logits, images), torch.tensor([2.5**2 / 2, 3.5**2 / 2]))


def test_feature_matching_compares_batch_means():
    real = (torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    fake = (torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert losses.feature_matching(real, fake).item() == (0.0 + 0.5) / 2
