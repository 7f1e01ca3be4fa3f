"""Inception Score from logits."""

import numpy as np
from torch import Tensor

from toolkit.errors import UserError, check

SHUFFLE_SEED = 2020
"""torch-fidelity's; splits of sorted images would hold few classes each."""


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) per split -> (mean, standard deviation) over the splits, in [1, classes].

    `logits` [N, classes] without the bias of the last layer, as torch-fidelity takes them. Salimans et al. 2016
    (arXiv:1606.03498, section 4); order of operations of torch-fidelity 0.4 metric_isc.py, so values are equal.
    UserError if there are fewer images than splits (torch-fidelity returns NaN then).
    """
    count = len(logits)
    check(splits > 0, "splits", splits, "at least 1")
    if count < splits:
        raise UserError(f"{count} images are fewer than {splits} splits; lower --splits or raise --count")
    if not logits.isfinite().all():
        raise UserError("the logits hold NaN or infinity; is the weights file damaged?")
    logits = logits[np.random.RandomState(SHUFFLE_SEED).permutation(count)].double()
    scores = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits]
        p, log_p = part.softmax(dim=1), part.log_softmax(dim=1)
        divergence = p * (log_p - p.mean(dim=0, keepdim=True).log())
        divergence = divergence.where(p > 0, 0.0)  # 0 log 0; NaN otherwise for a class no image of the split has
        scores.append(divergence.sum(dim=1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))
