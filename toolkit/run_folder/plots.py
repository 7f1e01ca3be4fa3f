"""training_plots.png from training_log.json, best.json, evaluations/ and events.json."""

import math
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.run_folder.evaluations import read_evaluations
from toolkit.run_folder.panels import AFTER_SCORES, BEFORE_SCORES, IMAGES, Panel, evaluation_panels, score_panel
from toolkit.run_folder.records import read_events, read_log

COLOURS = {"action": "tab:red", "warning": "tab:orange"}
"""Of the events marked on the losses; notes are not."""
Curve = tuple[list[float], list[float]]


def plot_training(run: Path) -> Path | None:
    """Draw run/training_plots.png, a panel per group of curves that has data; None if nothing was logged yet.

    Lines may hold `attempt`, raised by each rollback: what a rollback took back is dashed and pale, and a thin red line
    stands where it ended. None and values that are not finite are gaps. Axes show the bulk of the values: peaks
    beyond are cut off and named. Warnings and actions of events.json are marked on the losses.
    """
    lines, (scored, scores), evaluated = read_log(run), score_panel(run), read_evaluations(run)
    kept, abandoned = split_attempts(lines)
    points = [{IMAGES: one.images_seen / 1000} | one.scores for one in evaluated]
    data = {"step": lines + scores, IMAGES: points}
    panels = [*BEFORE_SCORES, scored, *evaluation_panels(evaluated), *AFTER_SCORES]
    panels = [panel for panel in panels if lines and has_data(panel, data[panel.along])]
    if not panels:
        return None
    from matplotlib.figure import Figure  # half a second of import, only when something is drawn

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    marked = [event for event in read_events(run) if event.get("level") in COLOURS]
    figure = Figure(figsize=(5 * columns, 3.75 * rows), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axis = figure.add_subplot(rows, columns, number)
        draw_panel(axis, panel, *((kept + scores, abandoned) if panel.along == "step" else (points, [])))
        last = max(line[panel.along] for line in data[panel.along]) or 1
        axis.set_xlim(-0.02 * last, 1.02 * last)
        events = marked if panel.title == "losses" else []
        mark_events(axis, events)
        axis.legend(fontsize=8, **({"loc": "upper right", "bbox_to_anchor": (1, 0.72)} if events else {"loc": "best"}))
    figure.suptitle(f"{run.name}, step {lines[-1]['step']:,}")
    staged = run / ".training_plots.png.tmp"
    figure.savefig(staged, format="png", dpi=90)
    return staged.replace(run / "training_plots.png")


def split_attempts(lines: list[dict]) -> tuple[list[dict], list[list[dict]]]:
    """(lines of the history that stands, for each rollback the lines it took back, led by the last that stands)."""
    kept: list[dict] = []
    abandoned: list[list[dict]] = []
    for line in lines:
        if kept and line.get("attempt", 0) > kept[-1].get("attempt", 0):
            stands = [before for before in kept if before["step"] < line["step"]]
            abandoned.append(stands[-1:] + kept[len(stands) :])
            kept = stands
        kept.append(line)
    return kept, abandoned


def curve(lines: list[dict], name: str, along: str = "step") -> Curve:
    """Places along the axis and values of the lines that hold `name`; what is no finite number is NaN, a gap."""
    held = [(line[along], line[name]) for line in lines if name in line]
    return [step for step, _ in held], [value if _is_finite(value) else math.nan for _, value in held]


def view(values: list[float], logarithmic: bool) -> tuple[float, float] | None:
    """Limits that leave out peaks of finite `values` that would flatten the rest; None if there are none.

    A peak is beyond the 10th and 90th percentile by more than 10 times their distance (logarithmic: by 4 decades and
    3 times their distance). The limits enclose what is within twice that distance, and a little air.
    """
    if logarithmic:
        limits = _without_peaks([math.log10(value) for value in values if value > 0], times=3, least=4 / 3)
        return limits and (10 ** limits[0], 10 ** limits[1])
    return _without_peaks(values, times=10, least=1e-9)


def _without_peaks(values: list[float], times: float, least: float) -> tuple[float, float] | None:
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    width = max(high - low, least)
    if ordered[0] >= low - times * width and ordered[-1] <= high + times * width:
        return None
    bulk = [value for value in ordered if low - 2 * width <= value <= high + 2 * width]
    air = 0.05 * max(bulk[-1] - bulk[0], width)
    return bulk[0] - air, bulk[-1] + air


def draw_panel(axis, panel: Panel, kept: list[dict], abandoned: list[list[dict]]) -> None:
    finite = _finite(panel, [line for lines in (kept, *abandoned) for line in lines])
    limits = view([value for values in finite.values() for value in values], panel.base > 0)
    for number, name in enumerate(panel.names):
        for lines in (*abandoned, kept) if finite[name] else ():
            places, values = curve(lines, name, panel.along)
            look: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9, "alpha": 0.5}
            if lines is kept:
                look = {"linewidth": 1.2, "label": name}
            look |= {"marker": "."} if panel.points or _is_lonely(values) else {}
            axis.plot(places, _cut(values, limits), color=f"C{number}", **look)
    for lines in abandoned:
        axis.axvline(lines[-1]["step"], color="red", linewidth=0.6)
    axis.set(title=panel.title, xlabel=panel.along)
    axis.grid(alpha=0.3)
    axis.locator_params(axis="x", nbins=6)
    if panel.base:
        axis.set_yscale("log", base=panel.base)
    else:
        axis.ticklabel_format(axis="y", scilimits=(-3, 5))
    if limits is not None:
        axis.set_ylim(limits)
        lowest, highest = (pick(pick(values) for values in finite.values() if values) for pick in (min, max))
        axis.set_xlabel(f"{panel.along} (peaks cut off: values from {lowest:.3g} to {highest:.3g})")


def mark_events(axis, events: list[dict]) -> None:
    """Triangles in a strip above the curves, each named unless the name would run into another; actions go first."""
    marked = [(level, event) for level in COLOURS for event in events if event["level"] == level]
    if not marked:
        return
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.4 * (high - low))
    left, right = axis.get_xlim()
    strip = axis.get_xaxis_transform()
    named: list[float] = []  # steps
    for level, colour in COLOURS.items():
        steps = [event["step"] for of, event in marked if of == level]
        if steps:
            axis.plot(steps, [0.97] * len(steps), "v", transform=strip, color=colour, markersize=5, label=level)
    for level, event in marked:
        if all(abs(event["step"] - step) > 0.04 * (right - left) for step in named):
            named.append(event["step"])
            look = {"fontsize": 7, "rotation": 90, "va": "top", "ha": "right", "color": COLOURS[level]}
            axis.text(event["step"], 0.945, event.get("name", ""), transform=strip, **look)


def _finite(panel: Panel, lines: list[dict]) -> dict[str, list[float]]:
    """Curve name -> its values that can be drawn."""
    drawable = _is_positive if panel.base else _is_finite
    return {name: [line[name] for line in lines if drawable(line.get(name))] for name in panel.names}


def has_data(panel: Panel, lines: list[dict]) -> bool:
    return any(len(set(values)) > panel.if_varies for values in _finite(panel, lines).values())


def _cut(values: list[float], limits: tuple[float, float] | None) -> list[float]:
    """Peaks moved to just beyond the view: the renderer fails on coordinates many times the size of the image."""
    if limits is None:
        return values
    low, high = limits
    return [
        value if math.isnan(value) else min(max(value, low - (high - low)), high + (high - low)) for value in values
    ]


def _is_lonely(values: list[float]) -> bool:
    """Whether a value has gaps on both sides: no line would show it."""
    padded = [math.nan, *values, math.nan]
    return any(
        math.isnan(before) and math.isnan(after) and not math.isnan(value)
        for before, value, after in zip(padded, values, padded[2:], strict=False)
    )


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_positive(value: object) -> TypeGuard[float]:
    return _is_finite(value) and value > 0
