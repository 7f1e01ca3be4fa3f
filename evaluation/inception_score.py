"""Inception Score of one source of pictures: JSON with the number and how it was made."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.inception import features, load_extractor
from evaluation.sources import ScoredOptions
from toolkit.command_line import run
from toolkit.devices import pick_device
from toolkit.errors import UserError, check

SHUFFLE_SEED = 2020
"""torch-fidelity's; splits of sorted pictures would hold few classes each."""
CUSTOMARY_COUNT = 50_000


@dataclass(frozen=True, kw_only=True)
class InceptionScoreOptions(ScoredOptions):
    """Inception Score (higher is better; knows nothing of the real pictures, so report it beside FID)."""

    splits: int = 10
    """Parts that the mean and the deviation are taken over."""
    weights: Path | None = None
    """torch-fidelity's Inception weights file (default: its download)."""


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) per split -> (mean, standard deviation) over the splits, in [1, classes].

    `logits` [N, classes] without the bias of the last layer, as torch-fidelity takes them. Salimans et al. 2016
    (arXiv:1606.03498, section 4); order of operations of torch-fidelity 0.4 metric_isc.py, so values are equal.
    UserError if there are fewer pictures than splits (torch-fidelity returns NaN then).
    """
    count = len(logits)
    check(splits > 0, "splits", splits, "at least 1")
    if count < splits:
        raise UserError(f"{count} pictures are fewer than {splits} splits; lower --splits or raise --count")
    logits = logits[np.random.RandomState(SHUFFLE_SEED).permutation(count)].double()
    scores = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits]
        p, log_p = part.softmax(dim=1), part.log_softmax(dim=1)
        divergence = p * (log_p - p.mean(dim=0, keepdim=True).log())
        divergence = divergence.where(p > 0, 0.0)  # 0 log 0; NaN otherwise for a class no picture of the split has
        scores.append(divergence.sum(dim=1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def main(options: InceptionScoreOptions) -> None:
    print(json.dumps(score(options), indent=1, ensure_ascii=False))


def score(options: InceptionScoreOptions) -> dict:
    """The report: "inception_score", "inception_score_std", "protocol", "notes". Raises UserError."""
    device = pick_device(options.device)
    source = options.open(device)
    if source.count < options.splits:  # before minutes of Inception
        inception_score(torch.empty(source.count, 1), options.splits)
    extractor = load_extractor("logits_unbiased", options.weights, device)
    mean, deviation = inception_score(features(source, extractor, options.batch), options.splits)
    small = [f"biased low: N < {CUSTOMARY_COUNT:,} ({source.count:,}); compare only with values at equal N"]
    return {
        "inception_score": mean,
        "inception_score_std": deviation,
        "protocol": {**options.protocol(source), "splits": options.splits, **extractor.protocol()},
        "notes": small if source.count < CUSTOMARY_COUNT else [],
    }


if __name__ == "__main__":
    run(main, InceptionScoreOptions)
