"""What the networks are made of, each part against its formula: norms, modulation, attention, gates, projections."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.test_models import inputs, tiny
from toolkit.networks.attention import SelfAttention
from toolkit.networks.layers import STD_EPSILON, SkipExcitation, UpBlock, with_minibatch_std
from toolkit.networks.models import Discriminator, Generator, Look
from toolkit.networks.norms import ConditionalNorm, make_norm
from toolkit.networks.spectral_norm import SpectralConv2d, SpectralNorms


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def awake(network: nn.Module) -> nn.Module:
    """With attention that counts and, in G, norms that the text moves."""
    torch.manual_seed(2)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, SelfAttention):
                module.gamma.fill_(0.7)
            if isinstance(module, ConditionalNorm):
                module.gamma_beta.weight.normal_(std=0.3)
                module.gamma_beta.bias.normal_(std=0.3)
    return network


# Norms


def test_norms_are_those_of_torch():
    x = random(3, 6, 5, 5, scale=3.0) + 1
    torch.testing.assert_close(make_norm("instance", 6)(x), F.instance_norm(x))
    torch.testing.assert_close(make_norm("rms", 6)(x), F.rms_norm(x, x.shape[1:], eps=1e-8))
    by_position = F.rms_norm(x.permute(0, 2, 3, 1), (6,), eps=1e-8).permute(0, 3, 1, 2)
    torch.testing.assert_close(make_norm("pixel", 6)(x), by_position)


@pytest.mark.parametrize("kind,dimensions", [("rms", (1, 2, 3)), ("pixel", (1,))])
def test_root_mean_squares_are_one_whatever_the_scale(kind, dimensions):
    x, norm = random(3, 6, 5, 5), make_norm(kind, 6)
    y = norm(x)
    assert (y.square().mean(dim=dimensions) - 1).abs().max() < 1e-6
    torch.testing.assert_close(norm(x * 1000), y, rtol=0, atol=1e-6)
    assert torch.equal(norm(torch.zeros(1, 6, 5, 5)), torch.zeros(1, 6, 5, 5))


@pytest.mark.parametrize("kind", ["rms", "pixel"])
def test_squares_do_not_overflow_half_precision(kind):
    """300^2 > 65,504, the largest fp16 number."""
    x = torch.full((2, 8, 4, 4), 300.0)
    with torch.autocast("cpu", torch.float16):
        y = make_norm(kind, 8)(x.half())
    assert y.dtype == torch.float16 and (y - 1).abs().max() < 2e-3


@pytest.mark.parametrize("kind", ["batch", "group", "instance", "rms", "pixel"])
def test_the_conditional_norm_scales_shifts_and_cuts(kind):
    norm, x, scale, shift = ConditionalNorm(8, 4, kind).double(), random(3, 8, 4, 4), *random(2, 3, 8, 1, 1, seed=1)
    expected = (scale * norm.norm(x) + shift).clamp(min=0)
    torch.testing.assert_close(norm(x, (scale, shift)), expected)


# Modulation


def affines_of(G: Generator, z, text) -> list[torch.Tensor]:
    features = G.text(text * G.cond_dim**0.5)
    return [torch.cat(pair, dim=1) for pair in G.modulation(G.norms(), features, z)]


@pytest.mark.parametrize("own_layers", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_each_norm_reads_what_it_should(own_layers, noise):
    """(1, 0) + gamma_beta([SiLU(L text) of its block, or the shared features; z])."""
    config = tiny(g_text_blocks=own_layers, g_modulation="text+noise" if noise else "text")
    G, (z, text, _) = awake(Generator(config)), inputs(config)
    shared = G.text(text * config.cond_dim**0.5)
    blocks = [F.silu(layer[0](shared)) if own_layers else shared for layer in G.modulation.layers or G.blocks]
    assert len(blocks) == len(G.blocks)
    read = [*(vector for vector in blocks for _ in range(2)), shared]
    for norm, vector, found in zip(G.norms(), read, affines_of(G, z, text), strict=True):
        expected = norm.gamma_beta(torch.cat([vector, z], dim=1) if noise else vector)
        expected = expected + torch.cat([torch.ones(norm.channels), torch.zeros(norm.channels)])
        torch.testing.assert_close(found[:, :, 0, 0], expected, rtol=1e-5, atol=1e-5)


def test_noise_reaches_every_norm_only_if_asked_to():
    for modulation, moved in (("text", False), ("text+noise", True)):
        config = tiny(g_modulation=modulation)
        G, (z, text, _) = awake(Generator(config)), inputs(config)
        for one, other in zip(affines_of(G, z, text), affines_of(G, z + 1, text), strict=True):
            assert bool((one - other).abs().max() > 0.01) == moved


# Attention


def attention(channels: int, gamma: float, convolution=nn.Conv2d) -> SelfAttention:
    torch.manual_seed(1)
    module = SelfAttention(channels, convolution).double()
    with torch.no_grad():
        module.gamma.fill_(gamma)
    if convolution is SpectralConv2d:
        SpectralNorms(module).normalise()
    return module


@pytest.mark.parametrize("convolution", [nn.Conv2d, SpectralConv2d])
def test_attention_is_the_explicit_softmax(convolution):
    x, module = random(2, 16, 3, 3), attention(16, 0.7, convolution)
    assert [layer.out_channels for layer in (module.query, module.key, module.value)] == [2, 2, 8]
    query, key, value = (layer(x).flatten(2).detach().numpy() for layer in (module.query, module.key, module.value))
    seen = np.zeros((2, 8, 9))
    for n in range(2):
        for j in range(9):
            weights = np.exp([query[n, :, j] @ key[n, :, i] for i in range(9)])
            seen[n, :, j] = sum(weights[i] / weights.sum() * value[n, :, i] for i in range(9))
    expected = x + 0.7 * module.out(torch.from_numpy(seen).unflatten(2, (3, 3)))
    torch.testing.assert_close(module(x), expected)


def test_attention_starts_as_the_identity_and_learns_its_gamma():
    x, module = random(2, 16, 4, 4), attention(16, 0.0)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.gamma.grad.abs() > 1e-3


def test_attention_does_not_overflow_half_precision():
    x, module = random(1, 64, 4, 4, scale=2000.0).float(), attention(64, 1.0).float()
    query, key = module.query(x).flatten(2), module.key(x).flatten(2)
    assert (query.transpose(1, 2) @ key).abs().max() > 70_000
    with torch.autocast("cpu", torch.float16):
        assert module(x.half()).isfinite().all()


def test_attention_stands_where_maps_have_its_sides():
    config = tiny(resolution=32, attention="8,16", d_scales=2)
    G, D, (z, text, images) = Generator(config), Discriminator(config), inputs(config)
    seen = []
    for module in (*G.modules(), *D.modules()):
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda module, given, found: seen.append(found.shape[-1]))
    G(z, text)
    assert seen == [8, 16]
    D(Look(images, text))
    assert seen[2:] == [16, 8, 8]  # of 32 px, then of 16 px


# Skip-layer excitation


def test_the_gate_is_its_formula_and_only_the_small_map_decides():
    torch.manual_seed(0)
    module, small, large = SkipExcitation(3, 5).double(), random(2, 3, 8, 8), random(2, 5, 16, 16, seed=1)
    pooled = small.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(small, 4))
    hidden = torch.einsum("ncij,ocij->no", pooled, module.conv4.weight) + module.conv4.bias
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden) @ module.conv1.weight[:, :, 0, 0].T + module.conv1.bias
    gate = 1 / (1 + (-hidden).exp())
    torch.testing.assert_close(module(small, large), gate[:, :, None, None] * large)
    torch.testing.assert_close(module.gate(pooled), module.gate(small))  # a 4x4 map is its own pool


@pytest.mark.parametrize("resolution", [16, 64])
def test_the_two_smallest_maps_gate_the_two_largest(resolution):
    config = tiny(resolution=resolution, skip_excitation=True)
    G, (z, text, _), seen = Generator(config), inputs(config), []
    for module in G.excitation:
        module.register_forward_hook(lambda module, given, found: seen.append(tuple(x.shape[-1] for x in given)))
    before = G(z, text)
    assert seen == [(4, resolution // 2), (8, resolution)]
    with torch.no_grad():
        G.excitation[1].conv1.weight.zero_()
        G.excitation[1].conv1.bias.fill_(40.0)  # an open gate
    assert (G(z, text) - before).abs().max() > 1e-3


# Minibatch standard deviation


def deviations(x: np.ndarray, sizes: list[int]) -> list[float]:
    """One value an image, for consecutive groups of these sizes."""
    found, start = [], 0
    for size in sizes:
        group = x[start : start + size]
        found += size * [np.sqrt(((group - group.mean(axis=0)) ** 2).mean(axis=0) + STD_EPSILON).mean()]
        start += size
    return found


@pytest.mark.parametrize("sizes", [[1], [2], [4], [3, 2], [3, 3], [4, 4], [3, 3, 3], [4, 4, 4, 3]], ids=str)
def test_the_deviation_is_that_of_its_group(sizes):
    x = random(sum(sizes), 3, 4, 4)
    found = with_minibatch_std(x, [len(x)])
    assert torch.equal(found[:, :3], x)
    expected = torch.tensor(deviations(x.numpy(), sizes), dtype=torch.float64)
    torch.testing.assert_close(found[:, 3], expected[:, None, None].expand(-1, 4, 4))


def test_no_group_reaches_over_a_border():
    x = random(7, 3, 4, 4)
    found = with_minibatch_std(x, [5, 2])[:, 3, 0, 0]
    torch.testing.assert_close(found, torch.tensor(deviations(x.numpy(), [3, 2, 2]), dtype=torch.float64))


def test_real_and_generated_images_never_share_a_group():
    """In one pass over 3 real and 3 generated ones: as in two, and blind for what the others are."""
    config = tiny(minibatch_std=True)
    D, (_, text, images) = Discriminator(config).double(), inputs(config)
    text, images = text.double(), images.double()
    real, fake, others = (D(Look(images, text), Look(other, text)) for other in (images / 2, images / 2, -images))
    apart = D(Look(images, text))[0].logits, D(Look(images / 2, text))[0].logits
    torch.testing.assert_close(real[0].logits, apart[0])
    torch.testing.assert_close(fake[1].logits, apart[1])
    torch.testing.assert_close(others[0].logits, real[0].logits)
    assert (others[1].logits - fake[1].logits).abs().min() > 1e-3


def test_images_of_a_group_are_judged_by_each_other_and_groups_are_not():
    config = tiny(minibatch_std=True)
    D, (_, text, images) = Discriminator(config).double(), inputs(config, n=8)
    text, images = text.double(), images.double()
    whole = D(Look(images, text))[0].logits
    parts = [D(Look(images[rows], text[rows]))[0].logits for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(parts), whole)
    changed = images.clone()
    changed[0] = -0.5
    moved = (D(Look(changed, text))[0].logits - whole).abs().amax(dim=1)
    assert moved[:4].min() > 1e-4 and moved[4:].max() < 1e-12


# Residual scale, projections, width


def test_the_branch_counts_as_often_as_the_scale_says():
    found = []
    for scale in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        block = UpBlock(6, 4, 8, "group", scale).double()
        ones, zeros = (torch.full((2, n, 1, 1), value, dtype=torch.float64) for n, value in ((6, 1.0), (6, 0.0)))
        x, affine = random(2, 6, 4, 4), (ones, zeros)
        found.append(block(x, affine, (ones[:, :4], zeros[:, :4])))
    skip = block.skip(x).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(found[0], skip) and (found[2] - skip).abs().mean() > 0.1
    torch.testing.assert_close(found[1], 0.75 * found[0] + 0.25 * found[2])


def test_the_text_is_projected_at_each_depth():
    """w.h + sum_k (V_k m(text)).h_k / sqrt(C_k), h_k the sum over positions as if there were 16."""
    config = tiny(resolution=32, d_projections=3, d_scales=1)
    D, (_, text, images) = Discriminator(config).double(), inputs(config)
    (verdict,) = D(Look(images.double(), text.double(), features=True))
    (scale,) = D.scales
    hidden = F.silu(scale.text[0](text.double() * 24**0.5))
    pooled = [features.clamp(min=0).mean(dim=(2, 3)) * 16 for features in verdict.features[::-1]]
    assert [features.shape[-1] for features in verdict.features] == [16, 8, 4] and len(scale.projections) == 2
    expected = scale.linear(pooled[0])[:, 0]
    for layer, seen in zip((scale.text[2], *scale.projections), pooled, strict=True):
        expected = expected + (layer(hidden) * seen).sum(dim=1) / seen.shape[1] ** 0.5
    torch.testing.assert_close(verdict.logits[:, 0], expected)


def test_scales_with_fewer_depths_project_at_all_they_have():
    config = tiny(resolution=32, d_projections=3, d_scales=3)
    assert [1 + len(scale.projections) for scale in Discriminator(config).scales] == [3, 2, 1]


def test_d_has_a_width_of_its_own():
    narrow, own = tiny(base_ch=2), tiny(base_ch=4, d_base_ch=2)
    assert [*map(shape, Discriminator(own).parameters())] == [*map(shape, Discriminator(narrow).parameters())]
    assert [*map(shape, Generator(own).parameters())] == [*map(shape, Generator(tiny(base_ch=4)).parameters())]


def shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
