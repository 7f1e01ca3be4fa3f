"""R1's and R2's weights: the rule of thumb, the course over a run, and what reaches the loss."""

import math

import pytest

from tests.running import lone_trainer, next_batch
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.training.penalty import share_left, weight_of


@pytest.mark.parametrize(("resolution", "batch", "expected"), [(256, 32, 0.4096), (1024, 32, 6.5536), (32, 16, 0.0128)])
def test_auto_is_stylegan2_adas_heuristic(resolution, batch, expected):
    assert weight_of("auto", resolution, batch) == pytest.approx(expected)
    assert weight_of(2.5, resolution, batch) == 2.5


def test_the_course_is_half_a_cosine_and_then_level():
    options = ResolvedConfig(r1_end=0.1, r1_kimg=10)
    for thousands, share in ((0, 1.0), (5, 0.55), (10, 0.1), (50, 0.1)):
        assert share_left(1000 * thousands, options, total=10**6) == pytest.approx(share)
    third = 1 - 0.9 * (1 - math.cos(math.pi / 3)) / 2
    assert share_left(3333, options, total=10**6) == pytest.approx(third, abs=1e-3)
    whole = ResolvedConfig(r1_end=0.1)
    assert share_left(600, whole, total=1200) == pytest.approx(0.55)
    assert share_left(600, ResolvedConfig(), total=1200) == 1.0


def test_both_weights_of_a_config_follow_it():
    config = TrainConfig(
        resolution=32, d_scales=1, batch=16, iters=100, r1_penalty="auto", r2_penalty=2.0, r1_end=0.0, r1_kimg=1
    ).resolved()
    assert config.penalties(0) == pytest.approx((0.0128, 2.0))
    assert config.penalties(500) == pytest.approx((0.0064, 1.0))
    assert config.penalties(1000) == pytest.approx((0.0, 0.0))


def test_the_loss_holds_the_weight_of_the_moment(shard_folder):
    """One step's D loss with and without R1 differ by interval times weight times the penalty."""
    found = {}
    for weight, end in ((0.0, 1.0), (3.0, 1.0), (3.0, 0.5)):
        one = lone_trainer(shard_folder, r1_penalty=weight, r1_interval=4, r1_end=end, r1_kimg=0.008, d_scales=1)
        batch = next_batch(one)
        one.position = 8  # the end of the course
        loss, stats = one.discriminator_loss(batch, StepDraws(0, 8, 0, 0))
        found[weight, end] = float(loss.detach()), float(stats["r1"].detach()) if "r1" in stats else 0.0
    without = found[0.0, 1.0][0]
    for weight, end in ((3.0, 1.0), (3.0, 0.5)):
        loss, penalty = found[weight, end]
        assert penalty > 0
        assert loss - without == pytest.approx(4 * weight * end * penalty, rel=1e-3)


@pytest.mark.parametrize("options", [{"r1_penalty": -1}, {"r2_penalty": math.nan}, {"r1_end": -0.1}, {"r1_kimg": 0}])
def test_out_of_range(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ResolvedConfig(**options)
