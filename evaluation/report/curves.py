"""Curves over the steps as images, a panel each, so that they fit any width of screen."""

import io
from collections.abc import Sequence

from evaluation.report.page import embedded, figure
from evaluation.report.run_record import RunRecord
from evaluation.run_scores.protocols import differences
from evaluation.run_scores.reading import Evaluation
from evaluation.run_scores.score_names import in_order, interval, parse
from toolkit.run_folder import plots
from toolkit.run_folder.panels import AFTER_SCORES, BEFORE_SCORES, Panel, score_panel

SIZE, DPI = (4.6, 3.1), 110
"""Inches, and pixels per inch: sharp at 320 px a panel, on a phone's screen too."""
DRAWN_LINES = 4000
"""Log lines a curve is drawn from; more would not be seen at this size and cost minutes."""


def score_curves(evaluations: list[Evaluation]) -> list[str]:
    """A panel for each score with at least two points made the same way as the newest."""
    with_step = [(one.step, one) for one in evaluations if one.step is not None]
    if not with_step:
        return []
    alike = [(step, one) for step, one in with_step if not differences(one, with_step[-1][1])]
    names = in_order({name for _, one in alike for name in one.scores})
    several = [name for name in names if sum(name in one.scores for _, one in alike) > 1]
    if not several:
        return ['<p class="note">Curves need two evaluations made the same way.</p>']
    return ['<div class="curves">', *(_score_panel(name, alike) for name in several), "</div>"]


def training_curves(record: RunRecord) -> list[str]:
    page = ["<h2>Curves of the training</h2>"]
    kept, abandoned = plots.split_attempts(record.lines)
    scored, scores = score_panel(record.folder)
    kept, abandoned = thinned(kept), [thinned(lines) for lines in abandoned]
    panels = [
        panel for panel in (*BEFORE_SCORES, scored, *AFTER_SCORES) if kept and plots.has_data(panel, kept + scores)
    ]
    if not panels:
        return [*page, "<p>Nothing has been logged yet.</p>"]
    last = max(1, *(line["step"] for line in kept))
    marked = [event for event in record.events if event["level"] in plots.COLOURS]
    note = "Red and orange marks on the losses are actions and warnings of the monitor." if marked else ""
    taken_back = " Pale and dashed: what a rollback took back." if abandoned else ""
    page.append(f'<p class="note">{note}{taken_back}</p>' if note or taken_back else "")
    page.append('<div class="curves">')
    for panel in panels:
        events = marked if panel.title == "losses" else []
        page.append(_panel(panel, kept + scores, abandoned, last, events))
    return [*page, "</div>"]


def thinned(lines: list[dict]) -> list[dict]:
    """At most about DRAWN_LINES of them, the first, the last and those with a loss's peak among them."""
    width = -(-len(lines) // (DRAWN_LINES // 2))
    if width <= 1:
        return lines
    groups = [lines[first : first + width] for first in range(0, len(lines), width)]
    chosen = [line for group in groups for line in (group[0], max(group[1:] or group, key=_height))]
    rare = [line for line in lines if "diversity" in line]  # measured at every sample grid only
    by_place = {id(line): line for line in [*chosen, *rare[:DRAWN_LINES], lines[-1]]}
    return [line for line in lines if id(line) in by_place]


def _height(line: dict) -> float:
    values = [line.get(name) for name in ("loss_d", "loss_g")]
    return max((value for value in values if value is not None), default=float("-inf"))


def _score_panel(name: str, evaluations: list[tuple[int, Evaluation]]) -> str:
    """`evaluations`: with their steps."""
    parsed = parse(name)
    having = [(step, one.scores) for step, one in evaluations if name in one.scores]
    lines: list[dict] = [{"step": step, name: scores[name]} for step, scores in having]
    bands = [(step, interval(name, scores)) for step, scores in having]
    panel = Panel(f"{name} ({'lower' if parsed.lower_is_better else 'higher'} is better)", (name,), points=True)
    return _panel(panel, lines, [], max(1, *(step for step, _ in having)), [], bands)


def _panel(panel: Panel, lines: list[dict], abandoned: list[list[dict]], last: float, events: list[dict],
           bands: Sequence[tuple[int, tuple[float, float] | None]] = ()) -> str:  # fmt: skip
    from matplotlib.figure import Figure  # half a second of import, only when something is drawn

    drawing = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axis = drawing.add_subplot()
    plots.draw_panel(axis, panel, lines, abandoned)
    axis.set_xlim(-0.02 * last, 1.02 * last)
    known = [(step, *ends) for step, ends in bands if ends]
    if known:
        steps, low, high = zip(*known, strict=True)
        axis.fill_between(steps, low, high, alpha=0.2, color="C0", label="95 %")
    plots.mark_events(axis, events)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(fontsize=8, **({"loc": "upper right", "bbox_to_anchor": (1, 0.72)} if events else {"loc": "best"}))
    data = io.BytesIO()
    drawing.savefig(data, format="png", metadata={"Software": None})
    width, height = (int(round(DPI * inches)) for inches in SIZE)
    return figure(embedded(data.getvalue(), "png", (width, height), panel.title), "")
