"""training_plots.png from training_log.json."""

from pathlib import Path

from toolkit.run_folder.records import read_log

PANELS = {
    "losses": ("loss_d", "loss_g", "loss_mismatch"),
    "D's mean logits": ("logit_real", "logit_fake", "logit_mismatched"),
    "R1 penalty (before lambda)": ("r1",),
    "gradient norms": ("grad_norm_d", "grad_norm_g"),
    "learning rates": ("lr_d", "lr_g"),
    "pictures per second": ("images_per_second",),
}
LOGARITHMIC = ("R1 penalty (before lambda)", "gradient norms")


def plot_training(run: Path) -> Path | None:
    """Draw run/training_plots.png, one panel per group of curves; None if nothing was logged yet."""
    import matplotlib  # half a second of import, only when something is drawn

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_log(run)
    if not lines:
        return None
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axis.set(title=title, xlabel="step")
        if title in LOGARITHMIC:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"{run.name}, step {lines[-1]['step']:,}")
    staged = run / ".training_plots.png.tmp"
    figure.savefig(staged, format="png", dpi=90)
    pyplot.close(figure)
    return staged.replace(run / "training_plots.png")
