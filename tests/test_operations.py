"""How many operations a training step hands to its device, as benchmarks/step.py counts them."""

from pathlib import Path

import pytest
import torch

from benchmarks.operations import Operations
from benchmarks.side_by_side import Different, Setting
from benchmarks.step_pair import LAZY, NEVER, Pair, Point


def test_the_counter_counts_what_computes():
    x = torch.ones(4, 4)
    with Operations() as counted:
        x.view(16).unsqueeze(0).detach().expand(3, -1)  # views
        torch.empty(3)
        torch._foreach_add([x, x], 1.0)
        x @ x
    assert counted.names == {"_foreach_add": 1, "mm": 1} and counted.flops == 2 * 4**3


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(Point(128, 4, 4), Setting(torch.device("cpu"), tmp_path))


def test_operations_of_a_step_stay_below_their_ceiling(pair):
    """At 128 px, D at one scale, without optimizers and average; measured: 1,094, 728 and 3,062."""
    strict, unpenalised = (pair.operations(pair.ours(interval), plain=False).count for interval in (1, NEVER))
    plain = pair.operations(lambda: pair.plain.step(*pair.plain_inputs), plain=True).count
    lazy = (strict + (LAZY - 1) * unpenalised) / LAZY
    assert strict <= 1100 and lazy <= 760
    assert plain > 2.5 * strict and plain > 3.8 * lazy


def test_the_plain_loop_computes_the_same_and_the_gate_sees_when_not(pair):
    assert "within" in pair.check_parity(steps=3)
    with torch.no_grad():
        pair.plain.G.net.to_rgb.bias += 0.1
    with pytest.raises(Different, match="losses"):
        pair.check_parity(steps=1)
