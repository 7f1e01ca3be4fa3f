"""How much the sample images differ: over noise vectors for one prompt, and over prompts for one noise vector."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


class Probe(NamedTuple):
    """Mean distances of generated images, in units of the mean distance of real images of different prompts.

    0: all alike; 1: as different as real images of different prompts. None where the images cannot tell.
    """

    diversity: float | None
    """Over pairs of noise vectors, prompt by prompt. Below 1 as a rule: images of one prompt share its content."""
    text_sensitivity: float | None
    """Over pairs of prompts, noise vector by noise vector."""
    same_layout: float | None
    """Correlation of luminance over pairs of noise vectors, prompt by prompt, in [-1, 1]: 1 is one layout a prompt."""


def probe(images: Tensor, reals: Tensor) -> Probe:
    """images uint8 [P, Z, 3, R, R]: P prompts times the same Z noise vectors; reals uint8 [P, 3, R, R], one a prompt.

    With P = 1, or real images that are all alike, there is no unit: both distances are None; with Z = 1 diversity and
    same_layout are None.
    Mean pairwise distances of samples measure diversity in Odena et al. 2017 (arXiv 1610.09585, sec. 4.2, by MS-SSIM)
    and Zhu et al. 2017 (arXiv 1711.11586, by LPIPS). The distance here needs no weights, see `layout`; dividing by the
    data's own distance gives numbers that mean the same for any data. Raises ValueError for other shapes.
    """
    if images.dim() != 5 or reals.shape != images[:, 0].shape:
        raise ValueError(f"expected [P, Z, 3, R, R] and [P, 3, R, R], got {[*images.shape]} and {[*reals.shape]}")
    generated, unit = layout(images), _mean_distance(layout(reals)[None])
    sameness = _sameness(images)
    if not unit:  # one prompt, or real images all alike
        return Probe(None, None, sameness)
    over_noise, over_prompts = _mean_distance(generated), _mean_distance(generated.transpose(0, 1))
    return Probe(over_noise and over_noise / unit, over_prompts and over_prompts / unit, sameness)


def _sameness(images: Tensor) -> float | None:
    """uint8 [P, Z, 3, R, R] -> mean correlation of the luminance of two images of one prompt; None for Z = 1."""
    count = images.shape[1]
    if count == 1:
        return None
    weights = torch.tensor(LUMINANCE, dtype=torch.float64)[:, None, None]
    grey = (images.cpu().double() * weights).sum(dim=2).flatten(2)
    grey = F.normalize(grey - grey.mean(dim=2, keepdim=True), dim=2)
    pairs = grey.sum(dim=1).square().sum(dim=1) - grey.square().sum(dim=(1, 2))
    return float(pairs.mean()) / (count * (count - 1))


def layout(images: Tensor) -> Tensor:
    """uint8 [..., 3, R, R] -> float64 [..., 3 * C * C] in [0, 1] on the CPU: means over C x C equal areas.

    Colours and coarse shapes stay; noise of single pixels, by which two images of a collapsed generator may differ,
    goes: C = R / 4, at most 16, so an area has 16 pixels or more and their noise shrinks to a quarter or less.
    """
    cells = max(1, min(16, images.shape[-1] // 4))
    means = F.adaptive_avg_pool2d(images.flatten(0, -4).cpu().double() / 255, cells)
    return means.reshape(*images.shape[:-3], -1)


def _mean_distance(groups: Tensor) -> float | None:
    """[groups, N, F] -> mean Euclidean distance over the pairs in each group; None for N = 1."""
    if groups.shape[1] == 1:
        return None
    distances = [F.pdist(group) for group in groups]
    return sum(d.sum().item() for d in distances) / sum(len(d) for d in distances)
