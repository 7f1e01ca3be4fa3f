"""The monitor: what each state of training looks like in the log, what is said of it, how often, and what is done."""

import dataclasses
import json
import math
import random
import re

import pytest

from toolkit.config import TrainConfig
from toolkit.errors import UserError
from toolkit.monitor import Monitor, WatchOptions
from toolkit.signs import RULES, SCALES

HEALTHY = {
    "loss_d": 1.2, "loss_g": 0.4, "loss_d_max": 2.1, "loss_g_max": 1.0, "loss_mismatch": 0.3, "logit_real": 0.6,
    "logit_fake": -0.5, "logit_mismatched": -0.8, "grad_norm_d": 8.0, "grad_norm_g": 4.0, "r1": 0.02, "d_steps": 1,
    "augment_p": 1.0, "r1_scale": 1.0, "real_sign": 0.5, "fake_sign": -0.4, "diversity": 0.4, "text_sensitivity": 0.8,
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
    ({"loss_d": 2.4, "loss_g": 0.1, "logit_real": -0.3, "logit_fake": 0.1}, {}, "hinge", {("g_winning", "warning", "")}),
    ({"loss_d": 2.01, "loss_g": 0.0, "logit_real": 0.02, "logit_fake": 0.0}, {}, "hinge", {("d_blind", "warning", "")}),
    ({"loss_d": 1.386, "loss_g": 0.69, "logit_real": 0.0, "logit_fake": 0.0}, {}, "nonsaturating",
     {("d_blind", "warning", "")}),
    ({"loss_d": 0.694, "loss_g": 0.694, "logit_fake": 40.0}, {}, "relativistic", {("d_blind", "warning", "")}),
    ({"logit_real": 21.0}, {}, "hinge", {("extreme_logits", "warning", "")}),
    ({"logit_mismatched": -25.0}, {}, "hinge", {("extreme_logits", "warning", "")}),
    ({"logit_mismatched": 15.0}, {}, "relativistic", {("extreme_logits", "warning", "")}),
    ({"grad_norm_d": 801.0}, {}, "hinge", {("gradient_jump", "warning", "")}),
    ({"loss_scale": 8.0}, {}, "hinge", {("loss_scale", "warning", "")}),
    ({"loss_scale": 0.5}, {}, "hinge", {("loss_scale", "action", "stop")}),
    ({"skipped": 0.4}, {}, "hinge", {("loss_scale", "warning", "")}),
    ({"diversity": 0.05}, {}, "hinge", {("collapse", "warning", "")}),
    ({"diversity": 0.05}, {"on_collapse": "stop"}, "hinge", {("collapse", "action", "stop")}),
    ({"text_sensitivity": 0.05}, {}, "hinge", {("text_ignored", "warning", "")}),
    ({"real_sign": 0.95}, {}, "hinge", {("d_overfits", "note", "")}),
    ({"real_sign": 1.0}, {}, "relativistic", set()),
    ({"loss_d": 0.7}, {}, "hinge", {("loss_range", "note", "")}),
    ({"loss_g": 2.2}, {}, "hinge", {("loss_range", "note", "")}),
]  # fmt: skip


@pytest.mark.parametrize("values, options, loss, expected", STATES, ids=lambda value: str(value)[:60])
def test_the_states_of_training(values, options, loss, expected):
    watch = monitor(loss, **options)
    assert told(watch, lines(20, base=HEALTHY_OF[loss])) == []
    assert kinds(told(watch, lines(8, first=21, base=HEALTHY_OF[loss], **values))) == expected
    assert watch.verdict().startswith("healthy: ") == (not expected)


def test_the_states_above_cover_every_rule():
    assert {name for *_, expected in STATES for name, _, _ in expected} == {*RULES, "diverged"}


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


def test_what_lasts_is_told_again_after_twenty_lines_only():
    watch = monitor()
    steps = [step for step, *_ in told(watch, lines(20) + lines(45, first=21, loss_d=0.03))]
    assert steps == [50 * line for line in (21, 41, 61)]


def test_what_comes_back_is_told_again_and_what_flickers_is_not():
    def winning(pattern: str) -> list[int]:
        log = [line | ({"loss_d": 0.03} if mark == "x" else {}) for line, mark in zip(lines(99), pattern, strict=False)]
        return [step // 50 for step, *_ in told(monitor(), log)]

    assert winning("x.....x") == [1, 7]
    assert winning("x....x..x.x") == [1]


def test_what_gets_worse_is_told_at_once():
    """Notes of single spikes; the third of five lines makes it a warning."""
    log = [line | ({"loss_g_max": 9.0} if i in (10, 12, 14) else {}) for i, line in enumerate(lines(20))]
    assert [(step // 50, level) for step, _, level, _ in told(monitor(), log)] == [(11, "note"), (15, "warning")]


def test_actions_are_told_every_time():
    watch = monitor()
    steps = [step for step, *_ in told(watch, lines(3, loss_d=math.nan))]
    assert steps == [50, 100, 150]


def test_d_steps_go_down_when_d_wins_for_five_lines_and_not_faster():
    watch, d_steps, acted = monitor(on_d_winning="lower_d_steps"), 3, []
    for line in lines(30, loss_d=0.03):
        for finding in watch.observe(line | {"d_steps": d_steps}):
            if finding.action:
                d_steps -= 1
                acted.append(line["step"] // 50)
    assert acted == [5, 10] and d_steps == 1
    assert kinds(told(monitor(on_d_winning="lower_d_steps"), lines(30, loss_d=0.03, d_steps=2)[::5])) == {
        ("d_winning", "warning", ""), ("d_winning", "action", "lower_d_steps")}  # fmt: skip


def test_a_probe_counts_until_the_next_but_asks_for_an_end_only_once():
    """Diversity stands in every tenth line only; a run resumed after the stop is judged anew at its next probe."""
    log = lines(40, first=20)
    log = [line | {"diversity": 0.01} if i % 10 == 0 else _without(line, "diversity") for i, line in enumerate(log)]
    found = told(monitor(on_collapse="stop"), log)
    assert [(step // 50, action) for step, _, _, action in found] == [
        (20, "stop"),
        (30, "stop"),
        (40, "stop"),
        (50, "stop"),
    ]
    watch = monitor(history=log[:15])
    assert "look alike" in watch.verdict()
    watch.observe(log[15] | {"diversity": 0.4})
    assert watch.verdict().startswith("healthy")


def _without(line: dict, *names: str) -> dict:
    return {name: value for name, value in line.items() if name not in names}


def busy_log() -> list[dict]:
    """300 lines, two rollbacks; each ten lines end in four of an ill state, and here and there a number is missing."""
    draw, log = random.Random(3), []
    ill = [values for values, _, loss, _ in STATES if loss == "hinge"]
    for i, line in enumerate(lines(150) + lines(100, first=120, attempt=1) + lines(50, first=200, attempt=2)):
        state = ill[i // 10 % len(ill)] if i % 10 > 5 else {}
        log.append(_without(line | state, draw.choice(list(HEALTHY))))
    return log


@pytest.mark.parametrize("split", [1, 7, 149, 155, 250, 299])
def test_a_resumed_run_is_judged_as_if_never_interrupted(split):
    """The history comes back from the file, as JSON."""
    log = busy_log()
    whole, options = [], {"on_d_winning": "lower_d_steps", "on_collapse": "stop"}
    watch = monitor(**options)
    for line in log:
        whole.append((watch.observe(line), watch.verdict()))
    assert len({finding.name for findings, _ in whole for finding in findings}) > 9
    resumed = monitor(history=[json.loads(json.dumps(line)) for line in log[:split]], **options)
    assert [(resumed.observe(line), resumed.verdict()) for line in log[split:]] == whole[split:]


def test_a_rollback_forgets_what_it_took_back():
    """Lines 11 to 20 belong to an attempt that was given up: they leave no mark on medians nor on the verdict."""
    ill = {"grad_norm_d": 5000.0, "loss_d": 2.0, "logit_real": 0.0, "logit_fake": 0.0}
    watch = monitor(history=lines(10) + lines(10, first=11, **ill) + lines(1, first=21, loss_d=math.nan))
    assert "diverged" in watch.verdict()
    assert told(watch, lines(5, first=11)) == [] and watch.verdict().startswith("healthy")
    assert kinds(told(watch, lines(1, first=16, grad_norm_d=850.0))) == {("gradient_jump", "warning", "")}


@pytest.mark.parametrize("missing", HEALTHY)
def test_any_number_may_be_missing_or_none(missing):
    watch, base = monitor(), {name: value for name, value in HEALTHY.items() if name != missing}
    assert told(watch, lines(15, base=base)) == [] and told(watch, lines(15, first=16, **{missing: None})) == []
    assert watch.verdict().startswith("healthy")


def test_lines_with_nothing_in_them():
    watch = monitor()
    assert watch.verdict() == "nothing logged yet"
    assert watch.observe({}) == [] == watch.observe({"step": None, "note": "words"})
    assert watch.verdict() == "healthy so far"


@pytest.mark.parametrize("name", ["diversity", "text_sensitivity", "score"])
def test_a_measurement_that_failed_is_no_divergence(name):
    assert told(monitor(), lines(15, **{name: math.nan})) == []


def test_one_gradient_norm_is_compared_with_the_median_before_it():
    """100 times the median of the lines before, not counting its own; five lines are needed to know one."""
    assert told(monitor(), lines(4) + lines(1, first=5, grad_norm_g=1e6)) == []
    assert told(monitor(), lines(5) + lines(1, first=6, grad_norm_g=399.0)) == []
    assert kinds(told(monitor(), lines(5) + lines(1, first=6, grad_norm_g=401.0))) == {("gradient_jump", "warning", "")}


def test_the_verdict_names_the_worst_first():
    watch = monitor(history=lines(20))
    told(watch, lines(6, first=21, loss_d=0.03, logit_real=25.0, real_sign=0.97))
    assert watch.verdict() == (
        "D is winning: its loss is 0.03 (logits 25 real, -0.5 generated), G learns little; try a lower --lr_d, a "
        "higher --r1_penalty, --adaptive_augment (also: extreme_logits, d_overfits)"
    )
    noted = monitor(history=lines(20, loss_g=2.2)).verdict()
    assert noted.startswith("healthy, with a note: losses out of their usual range: loss_g 2.2 (usual: 0 to 1.5); ")


def test_every_finding_is_one_sentence_that_names_flags_that_exist():
    flags = {field.name for field in dataclasses.fields(TrainConfig)}
    texts = set()
    for values, options, loss, _ in STATES:
        watch = monitor(loss, **options)
        log = lines(20, base=HEALTHY_OF[loss]) + lines(8, first=21, base=HEALTHY_OF[loss], **values)
        texts |= {finding.text for line in log for finding in watch.observe(line)}
    for text in texts:
        named = set(re.findall(r"--(\w+)", text))
        assert named and named <= flags, text
        assert "\n" not in text and not text.endswith(".") and "; " in text and len(text) < 220, text


def test_options_out_of_range_are_refused():
    for name, value in {"watch_spike": -1.0, "watch_text": math.nan, "rollback_lr": 0.0, "max_rollbacks": -1}.items():
        with pytest.raises(UserError, match=f"^{name} is "):
            WatchOptions(**{name: value}).check_watching()
    WatchOptions().check_watching()
