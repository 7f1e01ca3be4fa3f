"""EMA against its closed form."""

import pytest
import torch
from torch import nn

from toolkit.networks.ema import EMA


def network(value: float) -> nn.Module:
    module = nn.BatchNorm1d(2)
    with torch.no_grad():
        module.weight.fill_(value)
        module.running_mean.fill_(value)
    return module


def test_closed_form_with_constant_weights():
    """From 1 towards 3 for n steps: 3 + (1 - 3) d^n, for buffers as for weights."""
    ema = EMA(network(1.0), decay=0.9)
    for _ in range(20):
        ema.update(network(3.0))
    expected = torch.full((2,), 3 - 2 * 0.9**20)
    torch.testing.assert_close(ema.module.weight, expected)
    torch.testing.assert_close(ema.module.running_mean, expected)


def test_copies_before_the_start_and_counters_always():
    ema = EMA(network(1.0), decay=0.9, start=2)
    module = network(5.0)
    module.num_batches_tracked.fill_(7)
    ema.update(module)
    assert ema.module.weight.tolist() == [5.0, 5.0] and ema.module.num_batches_tracked.item() == 7
    ema.update(module)
    ema.update(network(6.0))
    assert ema.module.weight.tolist() == pytest.approx([5.1, 5.1])


def test_ramp():
    ema = EMA(network(0.0), decay=0.999, ramp=True)
    decays = []
    for _ in range(3):
        decays.append(ema.decay())
        ema.update(network(0.0))
    assert decays == [1 / 10, 2 / 11, 3 / 12]
    ema.updates = 100_000
    assert ema.decay() == 0.999


def test_half_life_in_images():
    ema = EMA(network(0.0), decay=0.0, half_life=1000, batch=50)
    assert ema.decay() ** 20 == pytest.approx(0.5)  # 20 steps of 50 images


@pytest.mark.parametrize("kimg", [0.1, 1.0, 20.0])
def test_closed_form_of_a_half_life_in_images(kimg):
    """From 1 towards 3: the distance halves every `kimg` thousand images."""
    ema = EMA(network(1.0), decay=0.0, half_life=1000 * kimg, batch=40)
    for _ in range(30):
        ema.update(network(3.0))
    torch.testing.assert_close(ema.module.weight, torch.full((2,), 3 - 2 * 0.5 ** (30 * 40 / (1000 * kimg))))


@pytest.mark.parametrize("rampup, updates", [(0.5, 15), (0.5, 60), (1.0, 15)])
def test_closed_form_of_a_half_life_that_grows_with_the_images_seen(rampup, updates):
    """The first update copies. Then the half-life is rampup n batch up to its full 500 images: the distances' product
    is 0.5^(H(n) / rampup) with the harmonic number H, and from there on halves every 500 images."""
    ema = EMA(network(1.0), decay=0.0, half_life=500, batch=50, rampup=rampup)
    ema.update(network(2.0))
    assert ema.module.weight.tolist() == [2.0, 2.0]
    for _ in range(updates):
        ema.update(network(3.0))
    growing = min(updates, round(10 / rampup))
    left = 0.5 ** (sum(1 / n for n in range(1, growing + 1)) / rampup) * 0.5 ** ((updates - growing) * 50 / 500)
    torch.testing.assert_close(ema.module.weight, torch.full((2,), 3 - left))
    assert ema.decay() == pytest.approx(0.5 ** (50 / min(500, rampup * ema.updates * 50)))


def test_both_ramps_and_the_start_hold_together():
    ema = EMA(network(0.0), decay=0.9, start=3, ramp=True, rampup=0.1)
    decays = []
    for _ in range(100):
        decays.append(ema.decay())
        ema.update(network(0.0))
    limits = [(min(0.9, (n - 2) / (n + 7)), 0.5 ** (1 / (0.1 * n)) if n else 0) for n in range(100)]
    assert decays == pytest.approx([0.0 if n < 3 else min(limits[n]) for n in range(100)])
    binding = {min(range(2), key=limits[n].__getitem__) for n in range(3, 100)}
    assert binding == {0, 1}  # each is the lower one somewhere


def test_the_network_in_training_is_untouched_and_shares_nothing():
    module = network(1.0)
    ema = EMA(module, decay=0.5)
    ema.update(network(3.0))
    assert module.weight.tolist() == [1.0, 1.0] and module.weight.requires_grad
    assert not any(parameter.requires_grad for parameter in ema.module.parameters()) and not ema.module.training
