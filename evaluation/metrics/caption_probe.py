"""Which caption would a linear reader, taught on the real pictures, give to each picture? Pure functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.metrics.features import check_features
from toolkit.errors import UserError

STRENGTHS = tuple(10.0**k for k in range(-5, 2))
"""Ridge strengths tried, in units of the features' mean eigenvalue."""
FEWEST = 5
"""Pictures a caption needs to be taught."""
MOST = 100
"""Captions told apart; with more of them a caption is a description and no class, and retrieval fits better."""


class Probe(NamedTuple):
    """Features [C] -> scores of the K captions, (x - mean) @ weight + bias; the highest one is the reader's answer."""

    captions: tuple[str, ...]
    mean: Tensor
    weight: Tensor
    """float64 [C, K]."""
    bias: Tensor
    accuracy: float
    """On the pictures it was taught on, each judged as if it had been left out."""
    strength: float

    def answers(self, features: Tensor) -> Tensor:
        """[N, C] -> int64 [N], places in `captions`."""
        return ((features.double() - self.mean) @ self.weight + self.bias).argmax(dim=1)


def fit(features: Tensor, captions: list[str]) -> Probe:
    """Features [N, C] of real pictures and their captions -> the least-squares classifier with one-hot targets.

    Ridge regression (Hoerl & Kennard 1970), its strength the one of STRENGTHS with the least leave-one-out error, which
    has a closed form: the residual over 1 - h with h the hat matrix' diagonal (Allen 1974, PRESS). The bias bears no
    penalty. Raises UserError for one caption, more than MOST, or fewer than FEWEST pictures of any.
    """
    check_features(features, fewest=2, metric="the caption probe")
    known = tuple(dict.fromkeys(captions))
    counts = {caption: captions.count(caption) for caption in known} if 2 <= len(known) <= MOST else {}
    if not counts:
        raise UserError(f"{len(known):,} different captions of the real pictures; the caption probe takes 2 to {MOST}")
    rarest = min(counts, key=counts.get)
    if counts[rarest] < FEWEST:
        raise UserError(
            f"{counts[rarest]} real picture(s) of {rarest[:80]!r}; the caption probe needs {FEWEST} of each"
        )
    labels = torch.tensor([known.index(caption) for caption in captions])
    targets = torch.nn.functional.one_hot(labels, len(known)).double()
    mean, bias = features.mean(dim=0, dtype=torch.float64), targets.mean(dim=0)
    u, s, v = torch.linalg.svd(features.double() - mean, full_matrices=False)
    projected, spectrum = u.T @ (targets - bias), s.square()
    best = None
    for strength in STRENGTHS:
        penalty = strength * spectrum.sum() / features.shape[1]
        shrink = spectrum / (spectrum + penalty).clamp(min=torch.finfo(torch.float64).tiny)
        leverage = (u.square() @ shrink + 1 / len(features)).clamp(max=1 - 1e-9)
        left_out = targets - (targets - bias - u @ (shrink[:, None] * projected)) / (1 - leverage)[:, None]
        error = float((targets - left_out).square().sum())
        if best is None or error < best[0]:
            best = error, strength, penalty, float((left_out.argmax(dim=1) == labels).double().mean())
    _, strength, penalty, accuracy = best
    inverse = s / (spectrum + penalty).clamp(min=torch.finfo(torch.float64).tiny)
    return Probe(known, mean, v.T @ (inverse[:, None] * projected), bias, accuracy, strength)


def hits(probe: Probe, features: Tensor, captions: list[str]) -> Tensor:
    """Whether the reader gives each picture [N, C] its own caption: bool [N]. A caption never taught is a UserError."""
    check_features(features, probe.mean[None], fewest=1, metric="the caption probe")
    place = {caption: i for i, caption in enumerate(probe.captions)}
    unknown = next((caption for caption in captions if caption not in place), None)
    if unknown is not None:
        raise UserError(f"the caption probe learns from real pictures, none of which has the caption {unknown[:80]!r}")
    return probe.answers(features) == torch.tensor([place[caption] for caption in captions])
