"""The monitor: how often a finding is told, what is done about it, and what resumptions and rollbacks leave of it."""

import json
import math
import random

import pytest

from tests.test_signs import HEALTHY, STATES, kinds, lines, monitor, told
from toolkit.errors import UserError
from toolkit.health.monitor import WatchOptions


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


@pytest.mark.parametrize("name", ["loss_g", "r1", "r2", "r1_frozen", "grad_norm_g"])
def test_whatever_of_the_training_is_not_finite_is_divergence(name):
    (found,) = monitor().observe(lines(1, **{name: math.inf})[0])
    assert (found.name, found.action) == ("diverged", "rollback") and f"{name} inf" in found.text


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


def test_only_lines_in_a_row_count_for_a_d_step():
    log = (
        lines(3, loss_d=0.03) + lines(1, first=4) + lines(4, first=5, loss_d=0.03) + lines(1, first=9, loss_d=math.nan)
    )
    log += lines(4, first=10, loss_d=0.03)
    found = told(monitor(on_d_winning="lower_d_steps"), [line | {"d_steps": 2} for line in log])
    assert {action for *_, action in found} == {"", "rollback"}


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
    """Lines 11 to 40 belong to an attempt that was given up: they leave no mark on medians nor on the verdict."""
    ill = {"grad_norm_d": 5000.0, "loss_d": 2.0, "logit_real": 0.0, "logit_fake": 0.0}
    watch = monitor(history=lines(10) + lines(30, first=11, **ill) + lines(1, first=41, loss_d=math.nan))
    assert "diverged" in watch.verdict()
    assert told(watch, lines(1, first=11)) == [] and watch.verdict().startswith("healthy")
    assert kinds(told(watch, lines(1, first=12, grad_norm_d=850.0))) == {("gradient_jump", "warning", "")}


def test_a_rollback_between_two_lines_forgets_findings_too():
    """A gradient that is not finite rolls back without a line that says so."""
    watch = monitor(history=lines(10) + lines(3, first=11, diversity=0.01))
    assert "look alike" in watch.verdict()
    assert told(watch, [_without(lines(1, first=11)[0], "diversity")]) == [] and watch.verdict().startswith("healthy")


def test_a_rollback_keeps_what_it_went_back_to():
    """The five lines that a median of gradient norms needs are those before the checkpoint."""
    watch = monitor(history=lines(20) + lines(1, first=21, loss_d=math.nan))
    assert kinds(told(watch, lines(1, first=6, grad_norm_d=850.0))) == {("gradient_jump", "warning", "")}
    assert told(monitor(history=lines(20)), lines(1, first=5, grad_norm_d=850.0)) == []


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


def test_the_verdict_names_the_worst_first():
    watch = monitor(history=lines(20))
    told(watch, lines(6, first=21, loss_d=0.03, logit_real=25.0, real_sign=0.97))
    assert watch.verdict() == (
        "D is winning: its loss is 0.03 (logits 25 real, -0.5 generated), G learns little; try a lower --lr_d, a "
        "higher --r1_penalty, --adaptive_augment (also: extreme_logits, d_overfits)"
    )
    noted = monitor(history=lines(20, loss_g=2.2)).verdict()
    assert noted.startswith("healthy, with a note: losses out of their usual range: loss_g 2.2 (usual: 0 to 1.5); ")


def test_options_out_of_range_are_refused():
    for name, value in {"watch_spike": -1.0, "watch_text": math.nan, "rollback_lr": 0.0, "max_rollbacks": -1}.items():
        with pytest.raises(UserError, match=f"^{name} is "):
            WatchOptions(**{name: value}).validate()
    WatchOptions().validate()
