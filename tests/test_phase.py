"""Scaling, clipping, skipping and accumulation of one network's half of a step."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from toolkit.training.phase import Phase


def phase(scaler=None, clip=0.0, lr=0.5, fused=False):
    network = nn.Linear(2, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    accelerator = SimpleNamespace(scaler=scaler, no_sync=lambda network: contextlib.nullcontext())
    optimizer = (
        torch.optim.SGD(network.parameters(), lr=lr, fused=True)
        if not fused
        else torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    )
    return Phase(accelerator, network, optimizer, clip, torch.zeros(()))


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_unscaled_then_clipped(scaled):
    one = phase(scaler() if scaled else None, clip=1.0)
    one.backward(one.network(torch.tensor([[3.0, 4.0]])).sum())
    result = one.step()
    assert result.gradient_norm.item() == pytest.approx(5.0, rel=1e-5)  # before clipping, in true units
    torch.testing.assert_close(one.network.weight, torch.tensor([[1 - 0.5 * 0.6, 1 - 0.5 * 0.8]]))
    assert one.network.weight.grad is None


def test_without_clipping():
    one = phase()
    one.backward(one.network(torch.tensor([[3.0, 4.0]])).sum())
    one.step()
    torch.testing.assert_close(one.network.weight, torch.tensor([[-0.5, -1.0]]))


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_this_network_and_halves_the_scale(fused):
    """Also with the fused Adam, whose skipping Accelerate's wrapper cannot see."""
    shared = scaler()
    one = phase(shared, fused=fused)
    one.backward(one.network(torch.tensor([[float("inf"), 1.0]])).sum())
    assert one.step().skipped
    assert one.network.weight.tolist() == [[1.0, 1.0]] and shared.get_scale() == 512.0
    one.backward(one.network(torch.tensor([[1.0, 1.0]])).sum())
    assert not one.step().skipped


def test_one_scaler_two_networks_keep_their_own_gradients():
    """D overflows and is skipped; G's next step has the gradient it should, neither doubled nor divided twice."""
    shared = scaler()
    d, g = phase(shared), phase(shared)
    d.backward(d.network(torch.tensor([[float("nan"), 1.0]])).sum())
    assert d.step().skipped
    g.backward(g.network(torch.tensor([[2.0, 0.0]])).sum())
    assert g.step().gradient_norm.item() == pytest.approx(2.0, rel=1e-5)
    assert d.network.weight.tolist() == [[1.0, 1.0]]


def test_accumulated_micro_batches_equal_one_batch():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    whole, parts = phase(), phase()
    whole.backward(whole.network(x).mean())
    whole.step()
    for i in range(2):
        with parts.accumulating(last=i == 1):
            parts.backward(parts.network(x[i : i + 1]).mean() / 2)
    parts.step()
    torch.testing.assert_close(whole.network.weight, parts.network.weight)


def test_a_gradient_that_is_not_finite_freezes_every_phase():
    """Without a scaler: nothing moves at that step or after it, in either network, until somebody looks."""
    d, g = phase(fused=True), phase(fused=True)
    g.broken = d.broken
    for network, x in ((d, [1.0, 1.0]), (d, [float("nan"), 1.0]), (g, [1.0, 1.0]), (d, [1.0, 1.0])):
        before = network.network.weight.tolist()
        network.backward(network.network(torch.tensor([x])).sum())
        network.step()
        moved = network.network.weight.tolist() != before
        assert moved == (network is d and before == [[1.0, 1.0]])
    assert d.broken == 1 and d.optimizer.state[d.network.weight]["step"] == 1
    assert not g.optimizer.state[g.network.weight]["exp_avg"].any()
