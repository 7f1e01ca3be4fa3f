"""plot.png: the criterion against images seen and against training seconds, a line for each variant."""

from pathlib import Path

from benchmarks.ablate.results import Results
from benchmarks.ablate.table import ranked
from evaluation.run_scores.score_names import parse

SHOWN = 5
"""Best variants in colour, with their names at their ends; the rest is grey."""
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown")
Line = list[tuple[float, float, float, float]]
"""(place, mean, lowest, highest)."""


def draw_plot(results: Results, path: Path) -> None:
    """The control is black. The band goes from the lowest seed to the highest."""
    from matplotlib.figure import Figure  # half a second of import, only when something is drawn

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = ranked(results)
    best, rest = names[:SHOWN], names[SHOWN:]
    control = results.grid["control"]
    looks = {name: ("0.75", 0.8) for name in rest}
    looks |= {name: (colour, 1.8) for name, colour in zip(best, COLOURS, strict=False)}
    looks |= {control: ("black", 2.2)}
    for axis, along, title in zip(axes, ("images_seen", "training_seconds"),
                                  ("thousand images seen", "seconds of training"), strict=True):  # fmt: skip
        ends, lowest = [], []
        for name, (colour, width) in looks.items():
            line = curve(results, name, results.grid["criterion"], along)
            if not line:
                continue
            places = [point[0] for point in line]
            lowest.append(min(point[2] for point in line))
            axis.plot(places, [point[1] for point in line], color=colour, linewidth=width, marker=".")
            if name not in rest:
                axis.fill_between(places, *zip(*(point[2:] for point in line), strict=True), color=colour, alpha=0.12,
                                  linewidth=0)  # fmt: skip
                ends.append((line[-1][0], line[-1][1], name, colour))
        axis.set(xlabel=title)
        axis.grid(alpha=0.3)
        axis.margins(x=0.02)
        if parse(results.grid["criterion"]).lower_is_better and min(lowest, default=0) > 0:
            axis.set_yscale("log")
            for of in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                of(lambda value, _: f"{value:.3g}")
        _name_ends(axis, ends)
    axes[0].set_ylabel(results.grid["criterion"])
    grey = f"; grey: {len(rest)} others" if rest else ""
    figure.suptitle(f"mean over seeds, band from lowest to highest; black: {control}{grey}", fontsize=10)
    staged = path.with_name(f".{path.name}.tmp")
    figure.savefig(staged, format="png", dpi=90)
    staged.replace(path)


def curve(results: Results, variant: str, score: str, along: str) -> Line:
    """By evaluation; only those that every finished run of the variant has."""
    runs = [run for run in results.of(variant) if run["points"]]
    found = []
    for points in zip(*(run["points"] for run in runs), strict=False):
        values = [point["scores"].get(score) for point in points]
        places = [point[along] for point in points]
        if None not in values and None not in places:
            scale = 1000 if along == "images_seen" else 1
            mean = sum(values) / len(values)
            found.append((sum(places) / len(places) / scale, mean, min(values), max(values)))
    return found


def _name_ends(axis, ends: list[tuple[float, float, str, str]]) -> None:
    """Names right of the axis beside their lines' heights, pushed apart where they would lie on each other."""
    axis.figure.canvas.draw_idle()
    low, high = axis.transData.transform([(0, limit) for limit in axis.get_ylim()])[:, 1]
    heights = {name: (axis.transData.transform((place, value))[1] - low) / (high - low)
               for place, value, name, _ in ends}  # fmt: skip
    below = -1.0
    for _, _, name, colour in sorted(ends, key=lambda end: heights[end[2]]):
        below = max(heights[name], below + 0.045)
        axis.text(1.01, below, name, transform=axis.transAxes, color=colour, fontsize=9, va="center")
