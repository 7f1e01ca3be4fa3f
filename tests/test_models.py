"""Shapes, ranges, and the properties the networks are chosen for."""

import pytest
import torch
from torch import nn

from toolkit.networks.architecture import EARLIER, ModelConfig
from toolkit.networks.models import Discriminator, Generator, Look
from toolkit.networks.spectral_norm import SpectralLayer


def tiny(**options) -> ModelConfig:
    small = {"resolution": 16, "base_ch": 4, "cond_dim": 24, "z_dim": 8, "d_scales": 2, **EARLIER}
    return ModelConfig(**(small | options))


def inputs(config: ModelConfig, n: int = 3):
    random = torch.Generator().manual_seed(0)
    text = nn.functional.normalize(torch.randn(n, config.cond_dim, generator=random), dim=1)
    images = torch.rand(n, 3, config.resolution, config.resolution, generator=random) * 2 - 1
    return torch.randn(n, config.z_dim, generator=random), text, images


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_generator_shape_and_range(resolution, norm):
    config = tiny(resolution=resolution, g_norm=norm, base_ch=2)
    z, text, _ = inputs(config, 2)
    images = Generator(config)(z, text)
    assert images.shape == (2, 3, resolution, resolution) and images.abs().max() <= 1


@pytest.mark.parametrize("resolution,scales", [(16, 1), (16, 2), (64, 3), (256, 2)])
def test_discriminator_gives_a_logit_per_image_and_scale(resolution, scales):
    config = tiny(resolution=resolution, d_scales=scales)
    _, text, images = inputs(config)
    (verdict,) = Discriminator(config)(Look(images, text, text.flip(0)))
    assert verdict.logits.shape == verdict.mismatched.shape == (3, scales)
    torch.testing.assert_close(verdict.logits[1], verdict.mismatched[1])  # row 1 keeps its own caption in the flip
    assert (verdict.logits[0] - verdict.mismatched[0]).abs().min() > 0


def test_text_and_noise_both_change_the_image():
    config = tiny()
    z, text, _ = inputs(config)
    G = Generator(config).eval()
    base, other_text, other_z = G(z[:1], text[:1]), G(z[:1], text[1:2]), G(z[1:2], text[:1])
    assert (base - other_text).abs().mean() > 1e-3 and (base - other_z).abs().mean() > 1e-3


def test_group_norm_images_do_not_depend_on_the_batch_but_batch_norm_ones_do():
    for norm, equal in (("group", True), ("batch", False)):
        config = tiny(g_norm=norm)
        z, text, _ = inputs(config)
        G = Generator(config)
        assert torch.allclose(G(z, text)[:1], G(z[:1], text[:1]), atol=1e-5) == equal


def test_every_discriminator_weight_has_spectral_norm_at_most_one():
    """Largest singular value by full SVD, after the power iteration has settled; every conv and linear layer."""
    config = tiny()
    D = Discriminator(config)
    D.iterate(150)
    D.norms.normalise()
    layers = [module for module in D.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) > 10 and all(isinstance(layer, SpectralLayer) for layer in layers)
    norms = torch.stack([torch.linalg.matrix_norm(layer.normalised.flatten(1), ord=2) for layer in layers])
    assert norms.max() < 1.03 and norms.min() > 0.97


def test_r1_leaves_autocast_from_within():
    """Under bf16 autocast the logits are coarse; those of penalised images equal the fp32 ones."""
    config = tiny()
    D = Discriminator(config).eval()
    _, text, images = inputs(config)
    plain = D(Look(images, text))[0].logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse, exact = (D(Look(images, text, penalised=penalised))[0].logits for penalised in (False, True))
    torch.testing.assert_close(exact, plain)
    assert exact.dtype == torch.float32 and (coarse.float() - plain).abs().max() > 1e-4


def test_looks_judged_together_are_judged_as_apart():
    config = tiny()
    D, (_, text, images) = Discriminator(config), inputs(config)
    looks = [Look(images, text, text.flip(0)), Look(images[:2] / 2, text[1:])]
    together = D(*looks)
    for verdict, look in zip(together, looks, strict=True):
        (alone,) = D(look)
        torch.testing.assert_close(verdict.logits, alone.logits, rtol=1e-5, atol=1e-5)
        assert (verdict.mismatched is None) == (look.mismatched is None)
    torch.testing.assert_close(together[0].mismatched, D(looks[0])[0].mismatched, rtol=1e-5, atol=1e-5)
    (kept, _) = D(looks[0]._replace(features=True), looks[1])
    assert len(kept.features) == sum(len(scale.blocks) for scale in D.scales) and len(kept.features[0]) == 3
