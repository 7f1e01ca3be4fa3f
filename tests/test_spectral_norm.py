"""Spectral norm of all layers at once: torch's numbers, with fewer operations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from toolkit.networks.spectral_norm import SpectralConv2d, SpectralLinear, SpectralNorms


class Small(nn.Module):
    """Two convolutions and a linear layer, ours or torch's."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        self.ours = ours
        if ours:
            self.layers = nn.ModuleList([SpectralConv2d(3, 8, 3), SpectralConv2d(8, 8, 1), SpectralLinear(8, 2)])
            self.norms = SpectralNorms(self)
        else:
            plain = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)]
            self.layers = nn.ModuleList(map(spectral_norm, plain))

    def forward(self, x):
        if self.ours:
            self.norms.normalise()
        for layer in self.layers[:2]:
            x = F.relu(layer(x))
        return self.layers[2](x.sum(dim=(2, 3)))


def pair(memory_format=torch.contiguous_format) -> tuple[Small, Small]:
    """Equal weights and singular vectors."""
    torch.manual_seed(0)
    theirs, ours = Small(False), Small(True).to(memory_format=memory_format)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def images() -> torch.Tensor:
    return torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_it_is_torchs_after_as_many_iterations(memory_format, times):
    theirs, ours = pair(memory_format)
    for layer in theirs.layers:  # in training mode each reading of a weight iterates
        for _ in range(times):
            weight = layer.weight
        layer.eval()
    ours.norms.iterate(times)
    ours.norms.normalise()
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        norm = b.parametrizations.weight[0]
        torch.testing.assert_close(a.normalised, b.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.u, norm._u, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.v.flatten(), norm._v, rtol=1e-6, atol=1e-6)
    assert (weight - theirs.layers[2].weight).abs().max() < 1e-6


@pytest.mark.parametrize("penalty", [False, True])
def test_gradients_are_torchs_also_those_of_a_penalty_on_the_gradient(penalty):
    theirs, ours = pair(torch.channels_last)
    found = []
    for network in (theirs.eval(), ours):
        x = images().requires_grad_()
        y = network(x)
        loss = y.square().mean()
        if penalty:
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            loss = loss + gradient.square().sum()
        names = [("weight" if network.ours else "parametrizations.weight.original"), "bias"]
        loss.backward()
        found.append([dict(layer.named_parameters())[name].grad for layer in network.layers for name in names])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in found[0])


def test_the_gradient_against_differences():
    """Miyato et al., eq. 12, with converged vectors: then sigma's derivative is that of the largest singular value."""
    layer = SpectralLinear(5, 4).double()
    holder = nn.ModuleList([layer])
    norms = SpectralNorms(holder)
    norms.iterate(2000)
    direction = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)

    def value(weight):
        return (weight / torch.linalg.matrix_norm(weight, ord=2) * direction).sum()

    norms.normalise()
    (layer.normalised * direction).sum().backward()
    exact = torch.autograd.functional.jacobian(value, layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, exact, rtol=1e-6, atol=1e-8)


def test_a_state_dict_of_torchs_spectral_norm_is_taken_and_ours_goes_back_and_forth():
    theirs, ours = pair()
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(a.weight, b.parametrizations.weight.original)
    x = images()
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    ours.norms.iterate(3)
    again = Small(True).to(memory_format=torch.channels_last)
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(x), ours(x), rtol=1e-6, atol=1e-6)
    assert [name for name, _ in ours.named_parameters()][:2] == ["layers.0.bias", "layers.0.weight"]  # torch's order


def test_iteration_follows_weights_that_moved_and_copies_are_independent():
    _, ours = pair()
    ours.norms.iterate()
    before = copy.deepcopy(ours)
    moved = ours.to(torch.float64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        moved.layers[0].weight.mul_(3)
    moved.norms.iterate(50)
    assert moved.layers[0].sigma.item() == pytest.approx(
        torch.linalg.matrix_norm(moved.layers[0].weight.flatten(1), ord=2).item(), rel=1e-5
    )
    assert before.layers[0].weight.dtype == torch.float32
    sigma = before.layers[0].sigma.item()
    before.norms.iterate(50)
    assert before.layers[0].sigma.item() == pytest.approx(sigma, rel=0.05) and sigma < moved.layers[0].sigma.item() / 2


def test_gradients_lie_in_memory_as_their_weights_do():
    """DDP's buckets expect their strides, also where a side of length 1 leaves them open."""
    _, ours = pair(torch.channels_last)
    ours(images()).sum().backward()
    for layer in ours.layers:
        assert layer.weight.grad.stride() == layer.weight.stride()
    assert ours.layers[1].weight.shape == (8, 8, 1, 1) and not ours.layers[0].weight.is_contiguous()
