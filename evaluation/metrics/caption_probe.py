"""Which caption would a linear reader, taught on the real images, give to each image? Pure functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.metrics import ridge
from evaluation.metrics.features import check_features
from toolkit.errors import UserError

FEWEST = 5
"""Images a caption needs to be taught."""
MOST = 100
"""Captions told apart; with more of them a caption describes, and text_probe or retrieval fits better."""


class Probe(NamedTuple):
    """Features [C] -> scores of the K captions, (x - mean) @ weight + bias; the highest one is the reader's answer."""

    captions: tuple[str, ...]
    mean: Tensor
    weight: Tensor
    """float64 [C, K]."""
    bias: Tensor
    accuracy: float
    """On the images it was taught on, each judged as if it had been left out."""
    strength: float

    def answers(self, features: Tensor) -> Tensor:
        """[N, C] -> int64 [N], places in `captions`."""
        return ((features.double() - self.mean) @ self.weight + self.bias).argmax(dim=1)


def fit(features: Tensor, captions: list[str]) -> Probe:
    """Features [N, C] of real images and their captions -> the least-squares classifier with one-hot targets.

    By `ridge.fit`. Raises UserError for one caption, more than MOST, or fewer than FEWEST images of any.
    """
    check_features(features, fewest=2, metric="the caption probe")
    known = tuple(dict.fromkeys(captions))
    counts = {caption: captions.count(caption) for caption in known} if 2 <= len(known) <= MOST else {}
    if not counts:
        raise UserError(f"{len(known):,} different captions of the real images; the caption probe takes 2 to {MOST}")
    rarest = min(counts, key=lambda caption: counts[caption])
    if counts[rarest] < FEWEST:
        raise UserError(f"{counts[rarest]} real image(s) of {rarest[:80]!r}; the caption probe needs {FEWEST} of each")
    labels = torch.tensor([known.index(caption) for caption in captions])
    targets = torch.nn.functional.one_hot(labels, len(known)).double()
    found = ridge.fit(features, targets)
    accuracy = float(((targets - found.left_out()).argmax(dim=1) == labels).double().mean())
    return Probe(known, found.mean, found.weight, found.bias, accuracy, found.strength)


def hits(probe: Probe, features: Tensor, captions: list[str]) -> Tensor:
    """Whether the reader gives each image [N, C] its own caption: bool [N]. A caption never taught is a UserError."""
    check_features(features, probe.mean[None], fewest=1, metric="the caption probe")
    place = {caption: i for i, caption in enumerate(probe.captions)}
    unknown = next((caption for caption in captions if caption not in place), None)
    if unknown is not None:
        raise UserError(f"the caption probe learns from real images, none of which has the caption {unknown[:80]!r}")
    return probe.answers(features) == torch.tensor([place[caption] for caption in captions])
