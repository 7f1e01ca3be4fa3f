"""Sliced Wasserstein distance between two sets of images: a score that needs no network and no download.

Karras et al., "Progressive Growing of GANs", ICLR 2018 (arXiv 1710.10196), section 5: patches of 7x7 from every level
of a Laplacian pyramid (Burt & Adelson 1983), compared by the sliced Wasserstein distance (Rabin et al. 2011). The
coarsest level, 16 px, holds large structure and colour, the finest one texture and sharpness.

It differs from the paper in four ways, so numbers compare within one project, not with published ones:

* Patches of both sets are normalised by the mean and deviation of the *real* ones. The paper's code normalises each set
  by its own, which hides exactly what an unfinished generator gets wrong: contrast, blur and a tint.
* Positions of patches and projections are the same for both sets and in every call with the same seed, so that
  equal sets score 0 and checkpoints are compared without the noise of new draws.
* 128 projections, the paper has 512: with the same ones for both, the order of two checkpoints needs no more.
* The caller chooses the number of images (the paper: 16,384). The score falls with it; compare at equal numbers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit import draws

COARSEST, PATCH, PATCHES = 16, 7, 128
PROJECTIONS, AT_ONCE = 128, 32
CHUNK = 64
TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def sliced_wasserstein(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, float]:
    """uint8 [N, 3, R, R] twice, R a power of two from 16 up -> {'swd_R': ..., 'swd_16': ..., 'swd': their mean}.

    All times 1000, as in the paper; 0 for equal sets, lower is better. Takes about 75 kB of memory per image of each
    set and works where the images lie; CPU and GPU agree up to the rounding of their matrix products. Raises
    ValueError unless both sets have the same shape.
    """
    if real.shape != fake.shape or real.ndim != 4 or real.shape[1] != 3 or not len(real):
        raise ValueError(f"two sets [N, 3, R, R] of one shape are compared, not {[*real.shape]} and {[*fake.shape]}")
    side = real.shape[-1]
    if side != real.shape[-2] or side < COARSEST or side & (side - 1):
        raise ValueError(f"images are square, with a power of two from {COARSEST} px, not {[*real.shape[-2:]]}")
    scores = {}
    for level in range((side // COARSEST).bit_length()):
        patches = [_patches(images, level, seed) for images in (real, fake)]
        mean = patches[0].mean(dim=(0, 2), keepdim=True)
        deviation = patches[0].std(dim=(0, 2), keepdim=True, correction=0).clamp_min(1e-3)  # of 255 grey levels
        a, b = (part.sub_(mean).div_(deviation).flatten(1) for part in patches)
        scores[f"swd_{side >> level}"] = 1000 * sliced_distance(a, b, _directions(a, seed, level))
    return scores | {"swd": sum(scores.values()) / len(scores)}


def sliced_distance(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """float [N, d] twice, [d, K] -> the 1-Wasserstein distance of the projections, averaged over the K directions.

    In one dimension the distance of two samples of N points is the mean distance of their sorted values.
    """
    parts = []
    for some in directions.split(AT_ONCE, dim=1):
        gap = _sorted(some.T @ a.T).sub_(_sorted(some.T @ b.T))
        parts.append(gap.abs_().mean(dim=1, dtype=torch.float64))
    return torch.cat(parts).mean().item()


def laplacian_level(images: Tensor, level: int) -> Tensor:
    """float [N, C, R, R] -> level `level` of the pyramid, [N, C, R / 2^level, R / 2^level].

    What the next coarser level cannot tell; the coarsest one, 16 px, is a smoothed image.
    """
    for _ in range(level):
        images = _halved(images)
    if images.shape[-1] == COARSEST:
        return images
    return images - _doubled(_halved(images))


def _patches(images: Tensor, level: int, seed: int) -> Tensor:
    """uint8 [N, 3, R, R] -> float32 [N * PATCHES, 3, PATCH * PATCH] at places drawn for (seed, level)."""
    count, side = len(images), images.shape[-1] >> level
    corners = side - PATCH + 1
    draw = torch.randint(corners, (2, count, PATCHES), generator=draws.generator(seed, "swd places", level))
    place = (draw[0] * side + draw[1]).to(images.device)
    reach = torch.arange(PATCH, device=images.device)
    within = (reach[:, None] * side + reach).flatten()
    inside = (torch.arange(3, device=images.device)[:, None] * side * side + within).flatten()  # of one patch
    found = []
    for some, corner in zip(images.split(CHUNK), place.split(CHUNK), strict=True):
        values = laplacian_level(some.float(), level).flatten(1)
        index = (corner[:, :, None] + inside).flatten(1)
        found.append(values.gather(1, index).view(-1, 3, PATCH * PATCH))
    return torch.cat(found)


def _directions(patches: Tensor, seed: int, level: int) -> Tensor:
    """float32 [d, PROJECTIONS], unit vectors uniform on the sphere."""
    draw = torch.randn(patches.shape[1], PROJECTIONS, generator=draws.generator(seed, "swd directions", level))
    return F.normalize(draw, dim=0).to(patches.device)


def _sorted(rows: Tensor) -> Tensor:
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    rows = rows.contiguous()
    rows.numpy().sort(axis=1)  # vectorised: 4 times as fast as torch.sort, which also builds indices
    return rows


def _halved(images: Tensor) -> Tensor:
    return _smoothed(images, 1.0)[..., ::2, ::2]


def _doubled(images: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    sparse = images.new_zeros(count, channels, 2 * height, 2 * width)
    sparse[..., ::2, ::2] = images
    return _smoothed(sparse, 2.0)  # three of four values are zeros: 2 per axis keeps the mean


def _smoothed(images: Tensor, gain: float) -> Tensor:
    """The binomial filter 1 4 6 4 1 in both directions, borders mirrored."""
    count, channels, height, width = images.shape
    taps = gain * images.new_tensor(TAPS)
    flat = F.pad(images.reshape(count * channels, 1, height, width), (2, 2, 2, 2), mode="reflect")
    flat = F.conv2d(F.conv2d(flat, taps.view(1, 1, 5, 1)), taps.view(1, 1, 1, 5))
    return flat.view(count, channels, height, width)
