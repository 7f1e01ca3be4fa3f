"""best.json: what counts as a gain, what survives a resume, and files that are not as they were written."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import linregress

from toolkit.errors import UserError
from toolkit.run_folder import best
from toolkit.run_folder.best import BestCheckpoint


def scored(run: Path, *values: float, metric: str = "swd") -> BestCheckpoint:
    """Scores at steps 100, 200, ..."""
    one = BestCheckpoint(run, metric)
    for number, value in enumerate(values):
        one.add(100 * (number + 1), value)
    return one


def stored(run: Path) -> dict:
    return json.loads((run / "best.json").read_text())


def test_the_lowest_score_is_the_best_and_is_written_down(tmp_path):
    one = BestCheckpoint(tmp_path, "swd")
    assert (one.step, one.without_gain, (tmp_path / "best.json").exists()) == (None, 0, False)
    assert one.add(100, 20.0) == "swd 20 at step 100: the best so far"
    assert one.add(200, 10.0) == "swd 10 at step 200: the best so far"
    assert one.add(300, 15.0) == "swd 15 at step 300: no gain of 1% for 1 score, the best is 10 at step 200"
    assert (one.step, one.without_gain) == (200, 1)
    history = [[100, 20.0], [200, 10.0], [300, 15.0]]
    assert stored(tmp_path) == {
        "metric": "swd", "higher_is_better": False, "value": 10.0, "step": 200, "checkpoint": "ckpt_0000200",
        "history": history,
    }  # fmt: skip


def test_where_higher_is_better_the_highest_score_is_the_best_and_numbers_stay_as_they_are(tmp_path):
    one = BestCheckpoint(tmp_path, "recall", higher_is_better=True)
    assert one.add(100, 0.2) == "recall 0.2 at step 100: the best so far"
    assert one.add(200, 0.1) == "recall 0.1 at step 200: no gain of 1% for 1 score, the best is 0.2 at step 100"
    assert one.add(300, 0.201) == "recall 0.201 at step 300: the best so far, but no gain of 1% for 2 scores"
    assert one.add(400, 0.203) == "recall 0.203 at step 400: the best so far" and one.without_gain == 0
    one.add(500, math.nan)
    assert (one.step, one.without_gain) == (400, 1)
    assert stored(tmp_path)["higher_is_better"] is True and stored(tmp_path)["value"] == 0.203
    assert stored(tmp_path)["history"] == [[100, 0.2], [200, 0.1], [300, 0.201], [400, 0.203], [500, None]]
    again = BestCheckpoint(tmp_path, "recall", 300, higher_is_better=True)
    assert (again.step, again.without_gain) == (300, 2)


def test_a_rising_score_pays_where_higher_is_better_and_a_falling_one_does_not(tmp_path):
    """Eight scores below a lucky first one: rising towards it, training still pays."""
    values = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    for name, later, pays in (("rising", values[1:], True), ("falling", values[:0:-1], False)):
        (tmp_path / name).mkdir()
        one = BestCheckpoint(tmp_path / name, "recall", higher_is_better=True)
        said = [one.add(step, value) for step, value in enumerate([values[0], *later])]
        assert ("more training has not paid since step 0" in said[-1]) != pays


def test_a_file_of_before_directions_goes_on_under_the_name_it_had(tmp_path, capsys):
    """Score 'fid' of Inception layer 768 was called 'fid'; what says its direction says its whole name."""
    old = {"metric": "fid", "value": 3.0, "step": 100, "checkpoint": "ckpt_0000100", "history": [[100, 3.0]]}
    (tmp_path / "best.json").write_text(json.dumps(old))
    one = BestCheckpoint(tmp_path, "fid_768", 100, formerly="fid")
    assert one.step == 100 and stored(tmp_path) == old | {"metric": "fid_768", "higher_is_better": False}
    assert BestCheckpoint(tmp_path, "fid_768", 100, formerly="fid").step == 100 and capsys.readouterr().err == ""
    assert BestCheckpoint(tmp_path, "fid", 100, formerly="fid").step is None
    assert "holds scores by 'fid_768'; set aside as best_fid_768.json" in capsys.readouterr().err


def test_less_than_a_percent_is_noise_but_small_steps_add_up(tmp_path):
    """100 -> 99.5 -> 99.1 are no gains on 100, 98.9 is; the lowest score is the best all the same."""
    one = scored(tmp_path, 100, 99.5, 99.1)
    assert (one.without_gain, one.step) == (2, 300)
    assert "the best so far, but no gain of 1% for 3 scores" in one.add(400, 99.05)
    one.add(500, 98.9)
    assert (one.without_gain, one.step) == (0, 500)


@pytest.mark.parametrize("values, gain", [([0.0, 0.0], 0), ([1e-3, 0.0], 1), ([-1.0, -1.005], 0), ([-1.0, -1.02], 1)])
def test_gains_at_and_below_zero(values, gain):
    """FID of small sets can be slightly negative."""
    assert best.last_gain([(step, value) for step, value in enumerate(values)]) == gain


def test_pure_noise_is_rarely_a_gain_and_a_trend_nearly_always():
    """200 runs of 10 scores that scatter by 0.3 %: without a trend the first stays the last gain; a fall of 1 % a
    score is seen at once or one score later."""
    noise = 1 + 0.003 * np.random.default_rng(0).standard_normal((200, 10))
    flat = [best.last_gain([(k, v) for k, v in enumerate(row)]) for row in noise]
    falling = [best.last_gain([(k, v * 0.99**k) for k, v in enumerate(row)]) for row in noise]
    assert np.mean(np.array(flat) == 0) > 0.8 and np.mean(np.array(falling) >= 8) > 0.95


def test_a_fit_says_when_training_no_longer_pays(tmp_path):
    one = scored(tmp_path, 50, 10, 12, 11, 12, 11, 11.5)
    assert one.add(800, 11.5).endswith("; more training has not paid since step 200")


def test_four_scores_are_too_few_to_say_so(tmp_path):
    one = scored(tmp_path, 10, 12, 12, 12)
    assert "not paid" not in one.add(500, 12) and "not paid since step 100" in one.add(600, 12)


def test_scores_that_still_fall_towards_a_lucky_one_are_not_called_off(tmp_path):
    one = scored(tmp_path, 10, 20, 18, 16, 14)
    assert "not paid" not in one.add(600, 12) and one.without_gain == 5


def test_the_fit_is_scipys():
    steps, values = (100, 250, 300, 700, 800), (5.0, 4.0, 4.5, 1.0, 2.0)
    expected = linregress(steps, values)
    fall, error = best.fitted_fall(list(zip(steps, values, strict=True)))
    assert fall == pytest.approx(-700 * expected.slope) and error == pytest.approx(700 * expected.stderr)


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    scored(tmp_path, 30, 20, 25, 10)
    one = BestCheckpoint(tmp_path, "swd", 300)
    assert (one.step, one.without_gain) == (200, 1)
    assert stored(tmp_path)["step"] == 200 and len(stored(tmp_path)["history"]) == 3
    assert BestCheckpoint(tmp_path, "swd").history == one.history  # without a step nothing is dropped
    one.add(300, 5.0)  # the same step again replaces its score
    assert one.history == [(100, 30.0), (200, 20.0), (300, 5.0)] and one.step == 300


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    one = BestCheckpoint(tmp_path, "swd")
    assert one.add(100, math.nan).endswith("not a number") and one.step is None and one.without_gain == 1
    one.add(200, 10.0)
    one.add(300, math.inf)
    assert (one.step, one.without_gain) == (200, 1)
    again = BestCheckpoint(tmp_path, "swd")
    assert (again.step, again.without_gain) == (200, 1) and stored(tmp_path)["history"][2] == [300, None]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\x00", b'{"metric": "swd"}', b'{"metric": "swd", "history": [[1]]}', b"null",
     b'{"metric": "swd", "history": [["x", 2]]}', b'{"metric": "swd", "history": 3}'],
)  # fmt: skip
def test_a_damaged_file_is_set_aside_with_a_line(tmp_path, capsys, content):
    (tmp_path / "best.json").write_bytes(content)
    one = BestCheckpoint(tmp_path, "swd", 100)
    said = capsys.readouterr().err
    assert one.step is None and said.count("\n") == 1 and "is damaged; set aside as best_damaged.json" in said
    assert (tmp_path / "best_damaged.json").read_bytes() == content
    one.add(100, 1.0)
    assert stored(tmp_path)["step"] == 100


def test_scores_by_another_metric_are_set_aside(tmp_path, capsys):
    scored(tmp_path, 300, 200, metric="fid")
    one = BestCheckpoint(tmp_path, "swd")
    assert one.step is None and "holds scores by 'fid'; set aside as best_fid.json" in capsys.readouterr().err
    one.add(300, 7.0)
    assert json.loads((tmp_path / "best_fid.json").read_text())["value"] == 200 and stored(tmp_path)["value"] == 7
    (tmp_path / "best.json").write_text('{"metric": "../../x", "history": []}')
    BestCheckpoint(tmp_path, "swd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_fid.json", "best_other.json"]


def test_a_full_disk_is_said_and_ends_nothing(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best, "write_whole", full)
    one = BestCheckpoint(tmp_path, "swd")
    assert one.add(100, 3.0).endswith("best.json not written: No space left on device)") and one.step == 100


def test_the_best_checkpoint_is_found_by_its_name(tmp_path):
    scored(tmp_path, 3.0, 1.0, 2.0)
    with pytest.raises(UserError, match="names no checkpoint"):
        best.best_checkpoint(tmp_path)
    (tmp_path / "ckpt_0000200").mkdir()
    assert best.best_checkpoint(tmp_path) == tmp_path / "ckpt_0000200"
    for name in ('"../../elsewhere"', '".."', '""', "null", "[]"):
        (tmp_path / "best.json").write_text(f'{{"checkpoint": {name}}}')
        with pytest.raises(UserError, match="names no checkpoint"):
            best.best_checkpoint(tmp_path)
