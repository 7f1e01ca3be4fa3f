"""What training adjusts by itself: closed forms of each quantity, and that each flag trains, is logged and saved."""

import json

import pytest
import torch

from tests.running import lone_trainer, next_batch, train
from toolkit.config import ResolvedConfig
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.run_folder.records import read_log
from toolkit.training.adaptive import Adaptive, AdaptiveOptions

BATCH, KIMG = 64, 8.0
SHARE = BATCH * Adaptive.EVERY / (KIMG * 1000)
"""Of the whole range of augment_p that one adaptation moves: 1024 images of 8,000."""


def adaptive(d_steps: int = 1, augment_p: float = 1.0, **options) -> Adaptive:
    return Adaptive(AdaptiveOptions(ada_kimg=KIMG, **options), d_steps, augment_p, BATCH)


def show(one: Adaptive, real_sign: float, fake_sign: float = 0.0, times: int = Adaptive.EVERY) -> None:
    for _ in range(times):
        one.observe(torch.zeros(2), torch.tensor([real_sign, fake_sign]))


def test_augment_p_rises_from_zero_by_images_over_kimg_and_stays_within_bounds():
    one = adaptive(adaptive_augment=True, augment_p=0.7)
    assert one.augment_p == 0
    found = []
    for sign in (0.9, 0.9, 0.6, 0.3, 0.3, 0.3):  # above the target of 0.6 twice, at it, below it
        show(one, sign)
        found.append(one.augment_p)
    sure = torch.tensor(0.6).double().item()  # float32's 0.6 lies above it
    up = SHARE * ((sure > 0.6) - (sure < 0.6))
    assert found == pytest.approx([SHARE, 2 * SHARE, 2 * SHARE + up, SHARE + up, max(0, up), 0], abs=1e-12)
    for _ in range(9):
        show(one, 1.0)
    assert one.augment_p == 1.0


def test_nothing_moves_before_sixteen_observations_and_each_counts_once():
    one = adaptive(adaptive_augment=True)
    show(one, 1.0, times=15)
    assert one.augment_p == 0
    show(one, 1.0, times=1)
    assert one.augment_p == SHARE
    show(one, 1.0, times=15)
    assert one.augment_p == SHARE


def test_the_mean_of_the_sixteen_decides():
    """15 times 0.5 and once 2.3: mean 0.6125, above the target; the median and the last but one are below."""
    one = adaptive(adaptive_augment=True)
    show(one, 2.3, times=1)
    show(one, 0.5, times=15)
    assert one.augment_p == SHARE


def test_the_r1_scale_moves_in_equal_steps_of_its_logarithm_between_a_tenth_and_ten():
    one = adaptive(adaptive_r1=True)
    show(one, 0.9)
    assert one.r1_scale == pytest.approx(10**SHARE)
    show(one, 0.1)
    show(one, 0.1)
    assert one.r1_scale == pytest.approx(10**-SHARE)
    for _ in range(12):
        show(one, 0.1)
    assert one.r1_scale == 0.1
    for _ in range(25):
        show(one, 0.9)
    assert one.r1_scale == 10.0 and one.augment_p == 1.0  # what has no flag stays


@pytest.mark.parametrize(
    ("start", "real", "fake", "expected"),
    [(1, 0.1, -0.2, 2), (2, 0.1, -0.2, 2), (2, 0.9, -0.9, 1), (1, 0.9, -0.9, 1), (1, 0.5, -0.5, 1), (2, 0.5, -0.5, 2),
     (3, 0.5, -0.5, 3), (1, -0.5, -0.5, 2)],
)  # fmt: skip
def test_d_steps_follow_the_margin_between_real_and_fake(start, real, fake, expected):
    """(real - fake) / 2 below 0.2: 2; above 0.8: 1; in between as before."""
    one = adaptive(d_steps=start, adaptive_d_steps=True)
    show(one, real, fake)
    assert one.d_steps == expected


def test_anchors_are_the_running_means_of_the_logits():
    """After n equal observations x: (1 - 0.99^n) x."""
    one = adaptive()
    for _ in range(50):
        one.observe(torch.tensor([2.0, -3.0]), torch.zeros(2))
    expected = torch.tensor([2.0, -3.0]) * (1 - 0.99**50)
    torch.testing.assert_close(one.anchors, expected, rtol=1e-5, atol=0)


def test_the_state_continues_in_the_middle_of_sixteen():
    whole, parts = (adaptive(adaptive_augment=True, adaptive_r1=True, adaptive_d_steps=True) for _ in range(2))
    for one in (whole, parts):
        show(one, 0.9, -0.9, times=23)
    resumed = adaptive(adaptive_augment=True, adaptive_r1=True, adaptive_d_steps=True)
    resumed.restore(json.loads(json.dumps(parts.state())), torch.device("cpu"))
    for one in (whole, resumed):
        show(one, 0.1, 0.1, times=9)
    assert resumed.state() == whole.state() and whole.augment_p == 0 and not whole.state()["signs"]  # SHARE up and down


def test_what_no_longer_adapts_takes_the_value_of_the_config():
    before = adaptive(adaptive_augment=True, adaptive_r1=True)
    show(before, 0.9)
    after = adaptive(augment_p=0.5)
    after.restore(before.state(), torch.device("cpu"))
    assert (after.augment_p, after.r1_scale) == (0.5, 1.0)


FLAGS = {
    "adaptive_augment": ("augment_p", 0.0, {"ada_target": -0.9, "diffaug": "color"}),
    "adaptive_r1": ("r1_scale", 1.0, {"ada_target": -0.9}),
    "adaptive_d_steps": ("d_steps", 1, {}),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_trains_is_logged_and_saved(shard_folder, tmp_path, flag):
    """18 steps of 8 images, one adaptation after the 16th. D hardly learns: no margin, mean sign above -0.9."""
    name, start, options = FLAGS[flag]
    train(shard_folder, tmp_path / "run", iters=18, ada_kimg=0.5, lr_d=1e-9, **{flag: True}, **options)
    logged = [line[name] for line in read_log(tmp_path / "run")]
    share = 8 * 16 / 500
    expected = {"adaptive_augment": share, "adaptive_r1": 10**share, "adaptive_d_steps": 2}[flag]
    assert logged[:15] == [start] * 15 and logged[15:] == pytest.approx([expected] * 3)
    state = json.loads((tmp_path / "run" / "ckpt_0000018" / "state.json").read_text())
    assert state["adaptive"][name] == pytest.approx(expected)
    images = 18 * 8 + (2 * 8 if flag == "adaptive_d_steps" else 0)
    assert state["position"] == images
    assert len(state["adaptive"]["signs"]) == (4 if flag == "adaptive_d_steps" else 2)


def test_the_scale_multiplies_the_penalty_of_d(shard_folder):
    """Twice the scale: D's loss is larger by r1_penalty * r1_interval * R1."""
    one = lone_trainer(shard_folder, adaptive_r1=True, r1_penalty=3.0, r1_interval=4)
    batch, noise = next_batch(one), StepDraws(0, 8, 0, 0)
    once, stats = one.discriminator_loss(batch, noise)
    one.adaptive.r1_scale = 2.0
    twice, _ = one.discriminator_loss(batch, noise)
    assert (twice - once).item() == pytest.approx(3.0 * 4 * stats["r1"].item(), rel=1e-5)


def test_lecam_pulls_towards_the_anchors_and_both_are_saved(shard_folder, tmp_path):
    """The first step's anchors are 0: the penalty is the mean square of both logits, up to their spread."""
    train(shard_folder, tmp_path / "run", iters=2, lecam=0.3, adaptive_augment=False)
    first, second = read_log(tmp_path / "run")
    assert first["lecam"] >= first["logit_real"] ** 2 + first["logit_fake"] ** 2 - 1e-5
    state = json.loads((tmp_path / "run" / "ckpt_0000002" / "state.json").read_text())
    expected = [0.01 * (0.99 * first[name] + second[name]) for name in ("logit_real", "logit_fake")]
    assert state["adaptive"]["anchors"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["hinge", "nonsaturating", "relativistic"])
def test_the_signs_are_those_of_ds_verdicts_wherever_its_zero_lies(shard_folder, loss):
    """D's last bias moved by 100: all logits are positive, but pairs differ as before, and only they count with the
    relativistic loss."""
    one = lone_trainer(shard_folder, loss=loss)
    batch, noise = next_batch(one), StepDraws(0, 8, 0, 0)
    before = {name: value.item() for name, value in one.discriminator_loss(batch, noise)[1].items()}
    with torch.no_grad():
        for scale in one.D.scales:
            scale.linear.bias += 100
    after = {name: value.item() for name, value in one.discriminator_loss(batch, noise)[1].items()}
    assert after["logit_real"] == pytest.approx(before["logit_real"] + 100, abs=1e-3)
    if loss == "relativistic":
        assert (after["real_sign"], after["fake_sign"]) == (before["real_sign"], before["fake_sign"])
        assert after["real_sign"] == -after["fake_sign"] and abs(after["real_sign"]) < 1
    else:
        assert after["real_sign"] == after["fake_sign"] == 1


@pytest.mark.parametrize("options, words", [
    ({"adaptive_augment": True, "diffaug": ""}, "adaptive_augment without diffaug: .*--diffaug color,"),
    ({"adaptive_r1": True, "r1_penalty": 0, "r2_penalty": 0}, "adaptive_r1 with r1_penalty 0 and r2_penalty 0"),
])  # fmt: skip
def test_what_would_change_nothing_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        ResolvedConfig(**options)
