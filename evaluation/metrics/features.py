"""What every metric asks of its features before it computes anything."""

from torch import Tensor

from toolkit.errors import UserError


def check_features(*sides: Tensor, fewest: int, metric: str) -> None:
    """UserError unless every side is [N, C] with one C, at least `fewest` rows and finite values only."""
    for features in sides:
        if features.ndim != 2:
            raise UserError(f"{metric}: features of shape {list(features.shape)}; it takes [N, C]")
        if len(features) < fewest:
            raise UserError(f"{len(features)} image(s): {metric} needs at least {fewest}; raise --count")
        if not features.isfinite().all():
            raise UserError("the features hold NaN or infinity; is the weights file damaged?")
    widths = [features.shape[1] for features in sides]
    if len(set(widths)) > 1:
        raise UserError(f"features of width {' and '.join(map(str, widths))} have no distance")
