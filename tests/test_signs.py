"""The signs of health: what each state of training looks like in the log, and what the monitor says of it."""

import dataclasses
import math
import random
import re

import pytest

from toolkit.config import ResolvedConfig
from toolkit.health.monitor import Monitor, WatchOptions
from toolkit.health.signs import RULES, SCALES

HEALTHY = {
    "loss_d": 1.2, "loss_g": 0.4, "loss_d_max": 2.1, "loss_g_max": 1.0, "loss_mismatch": 0.3, "logit_real": 0.6,
    "logit_fake": -0.5, "logit_mismatched": -0.8, "grad_norm_d": 8.0, "grad_norm_g": 4.0, "r1": 0.02, "d_steps": 1,
    "augment_p": 1.0, "r1_scale": 1.0, "real_sign": 0.5, "fake_sign": -0.4, "diversity": 0.4, "text_sensitivity": 0.8,
    "same_layout": 0.2,
    "loss_scale": 65536.0, "skipped": 0.0, "score": 31.0,
}  # fmt: skip
HEALTHY_OF = {
    "hinge": HEALTHY,
    "nonsaturating": HEALTHY | {"loss_d": 1.1, "loss_g": 1.2, "logit_real": 0.7, "logit_fake": -0.7},
    "relativistic": HEALTHY | {"loss_d": 0.5, "loss_g": 1.1, "logit_real": 40.0, "logit_fake": 39.2}
    | {"logit_mismatched": 39.0},
}  # fmt: skip


def lines(count: int, first: int = 1, base: dict = HEALTHY, **values) -> list[dict]:
    """`count` log lines, 50 steps apart, from step 50 * first."""
    return [base | values | {"step": 50 * (first + i), "images_seen": 1600 * (first + i)} for i in range(count)]


def monitor(loss: str = "hinge", history=(), **options) -> Monitor:
    return Monitor(WatchOptions(**options), loss, history)


def told(watch: Monitor, log: list[dict]) -> list[tuple[int, str, str, str]]:
    """(step, name, level, action) of every finding."""
    return [(line["step"], f.name, f.level, f.action) for line in log for f in watch.observe(line)]


def kinds(found: list[tuple]) -> set[tuple[str, str, str]]:
    return {one[1:] for one in found}


@pytest.mark.parametrize("loss", HEALTHY_OF)
def test_a_healthy_run_is_called_healthy_and_nothing_else(loss):
    """200 lines that oscillate by a tenth, each network's loss against the other's."""
    watch, draw = monitor(loss), random.Random(0)
    for line in lines(200, base=HEALTHY_OF[loss]):
        swing = {
            name: line[name] + draw.uniform(-0.1, 0.1) for name in ("loss_d", "loss_g", "logit_real", "logit_fake")
        }
        assert watch.observe(line | swing) == []
    assert watch.verdict().startswith("healthy: D loss")


STATES = [  # (values on top of a healthy run, options, loss, findings of 8 such lines)
    ({"loss_d": math.nan}, {}, "hinge", {("diverged", "action", "rollback")}),
    ({"grad_norm_g": math.inf}, {}, "hinge", {("diverged", "action", "rollback")}),
    ({"loss_g": 101.0}, {"on_divergence": "stop"}, "hinge", {("diverged", "action", "stop")}),
    ({"logit_fake": -101.0}, {}, "nonsaturating", {("diverged", "action", "rollback")}),
    ({"logit_real": 101.0, "logit_fake": -1.0}, {}, "relativistic", {("diverged", "action", "rollback")}),
    ({"loss_d_max": 7.0}, {}, "hinge", {("spike", "note", ""), ("spike", "warning", "")}),
    ({"loss_d": 6.0}, {}, "hinge", {("spike", "warning", "")}),
    ({"loss_d": 0.03}, {}, "hinge", {("d_winning", "warning", "")}),
    ({"loss_d": 0.03}, {}, "nonsaturating", {("d_winning", "warning", "")}),
    ({"loss_d": 0.5, "loss_g": 4.0, "logit_real": 1.5, "logit_fake": -4.0}, {}, "hinge",
     {("d_winning", "warning", "")}),
    ({"loss_d": 0.3, "loss_g": 4.5, "logit_real": 4.1, "logit_fake": -4.5}, {}, "nonsaturating",
     {("d_winning", "warning", "")}),
    ({"loss_d": 0.3, "loss_g": 4.5, "logit_fake": 35.5}, {}, "relativistic", {("d_winning", "warning", "")}),
    ({"loss_d": 0.03, "d_steps": 2}, {"on_d_winning": "lower_d_steps"}, "hinge",
     {("d_winning", "warning", ""), ("d_winning", "action", "lower_d_steps")}),
    ({"loss_d": 0.03, "d_steps": 1}, {"on_d_winning": "lower_d_steps"}, "hinge", {("d_winning", "warning", "")}),
    ({"loss_d": 2.4, "loss_g": 0.1, "logit_real": -0.3, "logit_fake": 0.1}, {}, "hinge",
     {("g_winning", "warning", "")}),
    ({"loss_d": 2.01, "loss_g": 0.0, "logit_real": 0.02, "logit_fake": 0.0}, {}, "hinge", {("d_blind", "warning", "")}),
    ({"loss_d": 1.386, "loss_g": 0.69, "logit_real": 0.0, "logit_fake": 0.0}, {}, "nonsaturating",
     {("d_blind", "warning", "")}),
    ({"loss_d": 0.694, "loss_g": 0.694, "logit_fake": 40.0}, {}, "relativistic", {("d_blind", "warning", "")}),
    ({"logit_real": 21.0}, {}, "hinge", {("extreme_logits", "warning", "")}),
    ({"logit_mismatched": -25.0}, {}, "hinge", {("extreme_logits", "warning", "")}),
    ({"logit_mismatched": 15.0}, {}, "relativistic", {("extreme_logits", "warning", "")}),
    ({"loss_d": 0.17, "loss_g": 3.9, "logit_fake": 37.1}, {}, "relativistic", set()),  # the emoji of docs/recipe.md
    ({"loss_d": 0.17, "loss_g": 4.5, "logit_fake": 37.1}, {}, "relativistic", {("loss_range", "note", "")}),
    ({"grad_norm_d": 801.0}, {}, "hinge", {("gradient_jump", "warning", "")}),
    ({"loss_scale": 8.0}, {}, "hinge", {("loss_scale", "warning", "")}),
    ({"loss_scale": 0.5}, {}, "hinge", {("loss_scale", "action", "stop")}),
    ({"skipped": 0.4}, {}, "hinge", {("loss_scale", "warning", "")}),
    ({"diversity": 0.03}, {}, "hinge", {("collapse", "warning", "")}),
    ({"diversity": 0.03}, {"on_collapse": "stop"}, "hinge", {("collapse", "action", "stop")}),
    ({"text_sensitivity": 0.05}, {}, "hinge", {("text_ignored", "warning", "")}),
    ({"real_sign": 0.95}, {}, "hinge", {("d_overfits", "note", "")}),
    ({"real_sign": 0.75}, {}, "relativistic", set()),
    ({"real_sign": 0.92, "loss_d": 0.21}, {}, "relativistic", {("d_overfits", "note", "")}),
    ({"loss_mismatch": 0.70}, {}, "relativistic", {("caption_unread", "warning", "")}),  # after 12,800 dishes
    ({"loss_mismatch": 0.66}, {}, "relativistic", set()),  # after 51,200: a reader names 0.59 of them
    ({"loss_mismatch": 1.01}, {}, "hinge", {("caption_unread", "warning", "")}),
    ({"loss_mismatch": 0.70, "text_share": 0.5}, {}, "relativistic", set()),
    ({"loss_mismatch": 0.70, "loss_match": 1.84, "match_blind": 2.30}, {}, "relativistic", set()),
    ({"loss_match": 2.29, "match_blind": 2.30}, {}, "relativistic", {("caption_unread", "warning", "")}),
    ({"loss_mismatch": 0.0}, {}, "relativistic", set()),  # mismatch_weight 0: there is none
    ({"same_layout": 0.54}, {}, "relativistic", {("one_layout", "note", "")}),
    ({"same_layout": 0.87}, {}, "relativistic", {("one_layout", "warning", "")}),
    ({"same_layout": 0.12}, {}, "relativistic", set()),
    ({"grad_norm_g": 0.0}, {}, "hinge", {("gradient_gone", "warning", "")}),
    ({"loss_d": 0.7}, {}, "hinge", {("loss_range", "note", "")}),
    ({"loss_g": 2.2}, {}, "hinge", {("loss_range", "note", "")}),
    ({"loss_d": 4.8, "loss_g": 4.9, "logit_real": 0.1, "logit_fake": -4.8}, {}, "hinge",  # D errs: it is not winning
     {("loss_range", "note", "")}),
]  # fmt: skip


@pytest.mark.parametrize(
    "values, options, loss, expected",
    STATES,
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:60],
)
def test_the_states_of_training(values, options, loss, expected):
    watch = monitor(loss, **options)
    assert told(watch, lines(20, base=HEALTHY_OF[loss])) == []
    assert kinds(told(watch, lines(8, first=21, base=HEALTHY_OF[loss], **values))) == expected
    assert watch.verdict().startswith("healthy: ") == (not expected)


def test_a_spike_of_the_relativistic_loss_stands_out_from_its_own_level():
    """As in a run of 320,000 images whose FID fell to the end: D ahead by a steady 3.5, single steps at 5.4."""
    ahead = HEALTHY_OF["relativistic"] | {"loss_d": 0.25, "loss_g": 2.9}
    watch = monitor("relativistic")
    assert told(watch, lines(5, base=ahead)) == []
    assert told(watch, lines(20, first=6, base=ahead, loss_g_max=5.4)) == []
    found = told(watch, lines(3, first=26, base=ahead, loss_g_max=5.9))
    assert [one[2] for one in found if one[1] == "spike"] == ["note", "warning"]  # once; again and again
    assert {"spike"} == {one[1] for one in told(monitor(), lines(6, loss_g=2.9, loss_g_max=5.4)) if one[2] == "warning"}


def test_the_states_above_cover_every_rule():
    covered = {name for *_, expected in STATES for name, _, _ in expected}
    assert covered | {"gradient_grows"} == {*RULES, "diverged"}


def test_a_norm_that_doubles_again_and_again_is_told_where_no_line_jumps():
    """Doubled every 1,000 steps: each line is 1.04 times the last one. Noise of the same size is no growth."""
    draw, watch = random.Random(0), monitor()
    growing = [line | {"grad_norm_d": 8.0 * 2 ** (i / 20)} for i, line in enumerate(lines(100))]
    assert {one[1:3] for one in told(watch, growing)} == {("gradient_grows", "note")}
    steady = [line | {"grad_norm_d": 8.0 * 2 ** draw.uniform(-1.4, 1.4)} for line in lines(200)]
    assert told(monitor(), steady) == []


def test_the_blind_losses_are_those_of_equal_logits():
    import torch

    from toolkit.networks.losses import discriminator_loss

    for loss, scale in SCALES.items():
        blind = discriminator_loss(torch.zeros(1, 2), torch.zeros(1, 2), loss).item()
        assert scale.blind == pytest.approx(blind, rel=1e-6) and scale.d[1] == scale.blind


@pytest.mark.parametrize(
    "values",
    [
        {"loss_d": 2.0, "loss_g": 0.0, "logit_real": 0.0, "logit_fake": 0.0},  # D knows nothing yet
        {"logit_real": -0.4, "logit_fake": 0.2},
        {"diversity": 0.01, "text_sensitivity": 0.01},
        {"loss_g": 2.0},
    ],
)
def test_the_first_steps_are_not_judged_by_what_every_run_looks_like(values):
    watch = monitor(watch_after=500)
    assert told(watch, lines(9, **values)) == [] and watch.verdict().startswith("healthy so far: ")
    assert {step for step, *_ in told(watch, lines(1, first=10, **values))} == {500}


def test_a_median_waits_for_five_lines():
    log = lines(5, first=100, loss_d=2.0, loss_g=0.0, logit_real=0.0, logit_fake=0.0)
    assert [(step, name) for step, name, *_ in told(monitor(), log)] == [(5200, "d_blind")]


@pytest.mark.parametrize("name", ["diversity", "text_sensitivity", "score"])
def test_a_measurement_that_failed_is_no_divergence(name):
    assert told(monitor(), lines(15, **{name: math.nan})) == []


def test_one_gradient_norm_is_compared_with_the_median_before_it():
    """100 times the median of the lines before, not counting its own; five lines are needed to know one."""
    assert told(monitor(), lines(4) + lines(1, first=5, grad_norm_g=1e6)) == []
    assert told(monitor(), lines(5) + lines(1, first=6, grad_norm_g=399.0)) == []
    assert kinds(told(monitor(), lines(5) + lines(1, first=6, grad_norm_g=401.0))) == {("gradient_jump", "warning", "")}


def test_every_finding_is_one_sentence_that_names_flags_that_exist():
    flags = {field.name for field in dataclasses.fields(ResolvedConfig)}
    texts = set()
    for values, options, loss, _ in STATES:
        watch = monitor(loss, **options)
        log = lines(20, base=HEALTHY_OF[loss]) + lines(8, first=21, base=HEALTHY_OF[loss], **values)
        texts |= {finding.text for line in log for finding in watch.observe(line)}
    for text in texts:
        named = set(re.findall(r"--(\w+)", text))
        assert named and named <= flags, text
        assert "\n" not in text and not text.endswith(".") and "; " in text and len(text) < 220, text


def test_the_high_losses_of_the_very_first_steps_are_no_warning():
    watch = monitor()
    assert kinds(told(watch, [HEALTHY | {"step": 10, "loss_d": 6.5, "loss_d_max": 25.0}])) == {("spike", "note", "")}
    assert kinds(told(watch, lines(8, first=11, loss_d=6.5))) >= {("spike", "warning", "")}
