"""How different are images from each other, within a prompt and over the whole set?"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evaluation.metrics.distances import blocks
from evaluation.metrics.features import check_features
from toolkit.errors import UserError

CHUNK = 4096
Prompt = TypeVar("Prompt", bound=Hashable)


def within_prompts(features: Tensor, groups: Sequence[Prompt]) -> dict[Prompt, float]:
    """Features [N, C] and the prompt of each -> mean Euclidean distance of all pairs of images within each prompt.

    0 where a prompt always gives the same image. Prompts with one image are left out.
    """
    check_features(features, fewest=1, metric="diversity")
    if len(features) != len(groups):
        raise UserError(f"{len(features)} images have {len(groups)} prompts; each needs one")
    members: dict[Prompt, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return {group: _mean_distance(features[rows]) for group, rows in members.items() if len(rows) > 1}


def mean_diversity(by_prompt: dict[Prompt, float]) -> float | None:
    """Mean over the prompts, each counted once; None if no prompt has two images."""
    return sum(by_prompt.values()) / len(by_prompt) if by_prompt else None


def vendi_score(features: Tensor) -> float:
    """How many different images the set amounts to: 1 (all alike) to min(N, C).

    exp of the entropy of the eigenvalues of K / N, K the cosines of features [N, C]: Friedman & Dieng 2022
    (arXiv:2210.02410, definition 2.1). X X^T / N and X^T X / N share their eigenvalues, so the smaller one is used.
    Zero vectors have no direction and count as alike. UserError without an image.
    """
    check_features(features, fewest=1, metric="the Vendi score")
    count, width = features.shape
    gram = torch.zeros(min(count, width), min(count, width), dtype=torch.float64)
    lengths = torch.cat([chunk.double().norm(dim=1) for chunk in features.split(CHUNK)])
    if count <= width:
        rows = _directions(features, lengths)
        gram = rows @ rows.T / count
    else:
        for chunk, length in zip(features.split(CHUNK), lengths.split(CHUNK), strict=True):
            rows = _directions(chunk, length)
            gram.addmm_(rows.T, rows, alpha=1 / count)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    values = torch.cat([values, (lengths == 0).double().mean()[None]])
    return float(torch.exp(-torch.xlogy(values, values).sum()))


def _directions(features: Tensor, lengths: Tensor) -> Tensor:
    return features.double() / lengths.where(lengths > 0, 1.0)[:, None]


def _mean_distance(features: Tensor) -> float:
    total = sum(float(squared.sqrt().sum()) for _, _, squared in blocks(features, features))
    return total / (len(features) * (len(features) - 1))
