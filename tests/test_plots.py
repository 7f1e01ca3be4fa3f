"""The plots: which panels are drawn, what a rollback leaves of the curves, and values that must not spoil the rest."""

import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from toolkit.run_folder import plots
from toolkit.run_folder.evaluations import Evaluated, read_evaluations
from toolkit.run_folder.panels import evaluation_panels, score_panel

SCORES = {
    "fid": "Fréchet distances (lower", "fid_infinity": "Fréchet distances (lower", "kid": "KID (lower",
    "precision": "variety", "recall": "variety", "density": "variety", "coverage": "variety",
    "inception_score": "Inception Score (higher",
}  # fmt: skip
"""Part of the title of their panel; of those that an Inception layer and a resize may add to."""
PLAIN = {
    "clip_fd": "Fréchet distances (lower", "dinov2_fd": "Fréchet distances (lower", "joint_fd": "Fréchet distances",
    "clip_score": "CLIP score (higher", "clip_score_shuffled": "CLIP score (higher",
    "r_precision": "own caption found", "r_precision_shuffled": "own caption found", "median_rank": "rank of the own",
    "authenticity": "authenticity (higher", "diversity": "prompt's images", "diversity_real": "prompt's images",
    "vendi": "Vendi", "vendi_real": "Vendi", "nearest_distance": "nearest training image",
}  # fmt: skip


def line(step: int, **values) -> dict:
    return {"step": step, "loss_d": 1.2, "loss_g": 0.4, "logit_real": 0.6, "logit_fake": -0.5, **values}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(lines, events) -> the figure plot_training made, whose file is an image."""

    def made(lines: list[dict], events: list[dict] | str = ()) -> Figure:
        figures = []
        monkeypatch.setattr("matplotlib.figure.Figure.__init__", _noting(figures))
        (tmp_path / "training_log.json").write_text("".join(json.dumps(one) + "\n" for one in lines))
        (tmp_path / "events.json").write_text("".join(json.dumps(one) + "\n" for one in events) + '{"step": 1, "le')
        path = plots.plot_training(tmp_path)
        with Image.open(path) as image:
            assert image.format == "PNG" and image.getextrema() != ((255, 255),) * 4
        assert not list(tmp_path.glob(".*")) and path == tmp_path / "training_plots.png"
        return figures[0]

    return made


def _noting(figures: list, original=Figure.__init__):
    def init(self, *args, **kwargs):
        figures.append(self)
        original(self, *args, **kwargs)

    return init


def panels(figure: Figure) -> dict:
    return {axis.get_title(): axis for axis in figure.axes}


def curves(axis, name: str) -> list[tuple[list, list, str]]:
    """(steps, values, style) of the named curve, and of those in its colour that have no name: earlier attempts."""
    colour = next(drawn.get_color() for drawn in axis.lines if drawn.get_label() == name)
    return [
        (list(drawn.get_xdata()), list(drawn.get_ydata()), drawn.get_linestyle())
        for drawn in axis.lines
        if drawn.get_color() == colour
    ]


def rollbacks(axis) -> list[float]:
    return [drawn.get_xdata()[0] for drawn in axis.lines if drawn.get_color() == "red"]


def test_nothing_logged_is_no_plot(tmp_path):
    assert plots.plot_training(tmp_path) is None
    (tmp_path / "training_log.json").write_text('{"step": 5, "loss_d": NaN, "loss_g": null}\n')
    assert plots.plot_training(tmp_path) is None and not (tmp_path / "training_plots.png").exists()


def test_only_panels_with_data_are_drawn(draw):
    steady = {"augment_p": 1.0, "r1_scale": 1.0, "d_steps": 2, "skipped": 0.0}
    assert list(panels(draw([line(5, **steady), line(10, **steady)]))) == ["losses", "D's mean logits"]
    moving = [line(5, **steady), line(10, augment_p=0.2, r1_scale=3.0, d_steps=1, skipped=0.1, score=7.0, r1=0.1)]
    found = panels(draw([*moving, line(15, loss_scale=8.0, diversity=0.5, text_sensitivity=None, r2=0.0)]))
    assert {"probability of augmentation", "scale of R1 and R2", "D steps per G step", "fp16 loss scale",
            "share of steps skipped for overflow", "score (lower is better)"} <= found.keys()  # fmt: skip
    assert len(found) == 10
    assert [text.get_text() for text in found["R1, R2 penalty (before their weights)"].get_legend().texts] == ["r1"]
    assert found["diversity, text sensitivity (share of real images')"].lines[0].get_marker() == "."


def test_a_curve_is_what_the_log_holds(draw):
    """A line without the key is passed over; None and what is not finite is a gap; a lonely value shows as a point."""
    log = [line(5, r1=0.1), line(10), line(15, r1=None), line(20, r1=0.3), line(25, r1=math.nan), line(30, r1=math.inf)]
    axis = panels(draw(log))["R1, R2 penalty (before their weights)"]
    ((steps, values, style),) = curves(axis, "r1")
    assert steps == [5, 15, 20, 25, 30] and style == "-" and axis.lines[0].get_marker() == "."
    assert values == pytest.approx([0.1, math.nan, 0.3, math.nan, math.nan], nan_ok=True)
    assert plots.curve(log, "loss_d") == ([5, 10, 15, 20, 25, 30], [1.2] * 6)


LOG_OF_TWO_ROLLBACKS = (
    [line(step, attempt=0) for step in (10, 20, 30, 40)]
    + [line(step, attempt=1) for step in (30, 40, 50)]  # went back to 20
    + [line(step, attempt=2) for step in (40, 50, 60)]  # went back to 30
)


def test_what_a_rollback_took_back_is_told_from_the_history_that_stands():
    kept, abandoned = plots.split_attempts(LOG_OF_TWO_ROLLBACKS)
    name = [(one["attempt"], one["step"]) for one in kept]
    assert name == [(0, 10), (0, 20), (1, 30), (2, 40), (2, 50), (2, 60)]
    assert [[one["step"] for one in lines] for lines in abandoned] == [[20, 30, 40], [30, 40, 50]]
    assert plots.split_attempts([line(10), line(20)]) == ([line(10), line(20)], [])


def test_rollbacks_are_dashed_and_marked_where_an_attempt_ended(draw):
    for axis in panels(draw(LOG_OF_TWO_ROLLBACKS)).values():
        assert rollbacks(axis) == [40, 50]
        for name in {drawn.get_label() for drawn in axis.lines if not drawn.get_label().startswith("_")}:
            found = [(steps, style) for steps, _, style in curves(axis, name)]
            assert found == [([20, 30, 40], "--"), ([30, 40, 50], "--"), ([10, 20, 30, 40, 50, 60], "-")]


def test_a_rollback_to_before_the_first_line_and_one_that_took_no_line_back():
    first = plots.split_attempts([line(10), line(5, attempt=1)])
    assert first == ([line(5, attempt=1)], [[line(10)]])
    none = plots.split_attempts([line(10), line(20, attempt=1)])
    assert none == ([line(10), line(20, attempt=1)], [[line(10)]])


def test_the_axes_leave_out_a_divergence_and_say_so(draw):
    log = [line(step, loss_d=1.2 + 0.1 * (step % 3), grad_norm_d=5.0 + step % 4) for step in range(40)]
    found = panels(draw([*log, line(40, loss_d=3e7, grad_norm_d=1e20), line(41, loss_d=-1e30, grad_norm_d=None)]))
    low, high = found["losses"].get_ylim()
    assert 0 < low < 0.4 and 1.4 < high < 2
    assert found["losses"].get_xlabel() == "step (peaks cut off: values from -1e+30 to 3e+07)"
    low, high = found["gradient norms"].get_ylim()
    assert 1 < low < 5 and 8 < high < 100 and found["gradient norms"].get_yscale() == "log"
    assert found["D's mean logits"].get_xlabel() == "step"


@pytest.mark.parametrize(
    "values, logarithmic",
    [
        ([1.0], False),
        ([0.0] * 9, False),
        ([5.3, 3.0] + [2.0, 0.3] * 20, False),  # the first steps of a run are no divergence
        ([300.0, 80.0] + [8.0, 6.0] * 20, True),
        ([1e-4, 1e-2, 1.0, 100.0, 1e4], True),
    ],
)
def test_ordinary_curves_are_shown_whole(values, logarithmic):
    assert plots.view(values, logarithmic) is None


@pytest.mark.parametrize("peak, logarithmic", [(50.0, False), (-50.0, False), (1e9, True), (1e-9, True)])
def test_a_peak_among_steady_values_is_left_out_and_nothing_else(peak, logarithmic):
    low, high = plots.view([1.0, 2.0] * 10 + [peak], logarithmic)
    assert (0.5 < low < 1 and 2 < high < 4) and not low < peak < high


def test_events_are_marked_on_the_losses(draw):
    events = [{"step": 12, "level": "warning", "name": "spike", "text": ""},
              {"step": 13, "level": "action", "name": "diverged", "text": ""},
              {"step": 40, "level": "warning", "name": "collapse", "text": ""},
              {"step": 60, "level": "note", "name": "loss_range", "text": ""},
              {"level": "warning", "name": "of no step"}]  # fmt: skip
    axis = panels(draw([line(step) for step in range(5, 105, 5)], events))["losses"]
    marks = {drawn.get_label(): list(drawn.get_xdata()) for drawn in axis.lines if drawn.get_marker() == "v"}
    assert marks == {"warning": [12, 40], "action": [13]}
    names = {text.get_text(): text.get_position()[0] for text in axis.texts}
    assert names == {"diverged": 13, "collapse": 40}  # 'spike' would stand on 'diverged'
    assert axis.get_ylim()[1] > 1.4  # room above the curves


def test_events_need_no_file_and_survive_a_damaged_one(tmp_path: Path):
    assert plots.read_events(tmp_path) == []
    (tmp_path / "events.json").write_text('{"step": 3, "level": "note"}\nnull\n{"step": "x"}\n{"st')
    assert plots.read_events(tmp_path) == [{"step": 3, "level": "note"}]


def test_scores_come_from_the_checkpoints_and_say_which_way_is_better(tmp_path):
    def read() -> tuple[str, list[dict]]:
        panel, scores = score_panel(tmp_path)
        return panel.title, scores

    lower = "score (lower is better)"
    assert read() == (lower, [])
    (tmp_path / "best.json").write_text('{"history": [[10, 3.5], [20, null]]}')
    assert read() == (lower, [{"step": 10, "score": 3.5}, {"step": 20, "score": None}])
    (tmp_path / "best.json").write_text('{"history": [[10, 3.5]], "higher_is_better": true}')
    assert read() == ("score (higher is better)", [{"step": 10, "score": 3.5}])
    for damaged in ("[1, 2", "[1, 2]", "3", '{"history": [["x", 1]]}'):
        (tmp_path / "best.json").write_text(damaged)
        assert read() == (lower, [])


def evaluated(run: Path, step: int, images_seen: int, **scores) -> None:
    (run / "evaluations").mkdir(exist_ok=True)
    content = {"images_seen": images_seen, "scores": scores}
    (run / "evaluations" / f"step_{step:07d}.json").write_text(json.dumps(content))


def test_scores_of_evaluations_stand_against_the_images_seen_each_kind_by_itself(tmp_path, draw):
    """Diversity is measured at every sample grid, too: two panels, two axes."""
    every = {"kid_low": 0.01, "kid_high": 0.03, "kid_std": 0.01, "inception_score_std": 1.0, "unheard_of": 5.0}
    evaluated(tmp_path, 10, 500, fid_768=90.0, kid=0.02, recall=0.1, precision=0.5, diversity=0.4, **every)
    evaluated(tmp_path, 20, 1500, fid_768=60.0, kid=None, recall=0.3, precision=0.6, diversity=0.5, clip_fd=7.0)
    found = panels(draw([line(10, diversity=0.9), line(20, diversity=0.8)]))
    axis = found["Fréchet distances (lower is better)"]
    assert curves(axis, "fid_768") == [([0.5, 1.5], [90.0, 60.0], "-")] and curves(axis, "clip_fd")[0][0] == [1.5]
    assert axis.get_xlabel() == "thousand images seen" and 1.5 < axis.get_xlim()[1] < 1.6
    shares = found["quality, variety, authenticity (higher is better)"]
    assert [text.get_text() for text in shares.get_legend().texts] == ["recall", "precision"]
    assert curves(found["KID (lower is better)"], "kid")[0][:2] == ([0.5], [0.02])
    assert curves(found["diversity of a prompt's images"], "diversity")[0][:2] == ([0.5, 1.5], [0.4, 0.5])
    ours = found["diversity, text sensitivity (share of real images')"]
    assert curves(ours, "diversity")[0][:2] == ([10, 20], [0.9, 0.8]) and ours.get_xlabel() == "step"
    drawn = [drawn.get_label() for axis in found.values() for drawn in axis.lines]
    assert not [name for name in drawn if name in every]


def test_damaged_evaluations_are_passed_over_and_rewritten_ones_read_anew(tmp_path):
    evaluated(tmp_path, 10, 500, fid=90.0)
    for number, damaged in enumerate((b"", b"[]", b"{}", b'{"scores": 3, "images_seen": 1}', b"\xff", b"[" * 10**5)):
        (tmp_path / "evaluations" / f"step_000002{number}.json").write_bytes(damaged)
    (tmp_path / "evaluations" / "mine.json").write_text('{"scores": {"fid": 1}, "images_seen": 5}')
    assert read_evaluations(tmp_path) == [(10, 500, {"fid": 90.0})]
    evaluated(tmp_path, 10, 500, fid=80.25)
    assert read_evaluations(tmp_path) == [(10, 500, {"fid": 80.25})]
    assert read_evaluations(tmp_path / "none") == []


@pytest.mark.parametrize("name", SCORES | PLAIN)
def test_each_score_has_one_panel_whose_title_says_which_way_is_better(name):
    """'r_precision' is no precision, 'joint_fd' a Fréchet distance; layer and resize in the name change nothing."""
    for full in (name, f"clean_{name}_768") if name in SCORES else (name,):
        (panel,) = evaluation_panels([Evaluated(1, 1, {full: 1.0})])
        assert panel.names == (full,) and (SCORES | PLAIN)[name] in panel.title
