"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): differentiable augmentation of real and generated images.

Each function takes images [N, 3, H, W] in [-1, 1] and its uniform numbers u [N, k] in [0, 1): the numbers come from
`toolkit.draws`, so that they do not depend on the process. All are differentiable twice with respect to the images.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATION, CUTOUT = 1 / 8, 1 / 2
"""Largest shift, and side of the cut-out square, as shares of the image's side (the paper's values)."""


class Numbers(NamedTuple):
    """What decides one augmentation of N images."""

    u: Tensor
    """[N, parameter_count(names)] in [0, 1)."""
    applied: Tensor | None
    """bool [N, len(names)]: which images each transform changes; None: all."""

    @classmethod
    def read(cls, columns: Tensor, names: tuple[str, ...]) -> "Numbers":
        """From float [N, parameter_count(names)], or with a column of 0 or 1 for each transform behind these."""
        count = parameter_count(names)
        return cls(columns[:, :count], columns[:, count:] > 0 if columns.shape[1] > count else None)

    def joined(self, others: "Numbers") -> "Numbers":
        """Those of these images, then those of others under the same policy and probability."""
        both = None if self.applied is None or others.applied is None else torch.cat([self.applied, others.applied])
        return Numbers(torch.cat([self.u, others.u]), both)


def parameter_count(names: tuple[str, ...]) -> int:
    """How many uniform numbers an image needs under this policy."""
    return sum(_WIDTH[name] for name in names)


def augment(images: Tensor, names: tuple[str, ...], u: Tensor, applied: Tensor | None = None) -> Tensor:
    """Apply the named transforms in the order given; u [N, parameter_count(names)] in [0, 1).

    `applied` bool [N, len(names)] says which images each transform changes; by default all.
    """
    for k, (name, columns) in enumerate(zip(names, u.split([_WIDTH[name] for name in names], dim=1), strict=True)):
        changed = _TRANSFORM[name](images, columns)
        images = changed if applied is None else torch.where(applied[:, k, None, None, None], changed, images)
    return images


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness by -0.5..0.5, saturation by 0..2, contrast by 0.5..1.5."""
    brightness, saturation, contrast = (column[:, None, None, None] for column in u.unbind(1))
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Shift by whole pixels, up to 1/8 of the side each way; what moves in is 0 (mid grey): a random crop."""
    size = x.shape[-1]
    most = round(size * TRANSLATION)
    shift = (u * (2 * most + 1)).floor().long()  # 0 .. 2 * most, where `most` is no shift
    rows, columns = (torch.arange(size, device=x.device) + shift[:, :, None]).unbind(1)
    padded = F.pad(x, [most] * 4)
    # Two gathers, not one index: the backward pass of indexing sorts all indices on a GPU.
    shifted = padded.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[3]))
    return shifted.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], size, -1))


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """A square of half the side, centred anywhere, becomes 0 (mid grey)."""
    size = x.shape[-1]
    half = size * CUTOUT / 2
    at = torch.arange(size, device=x.device) + 0.5
    rows, columns = ((at - u[:, k, None] * size).abs() < half for k in (0, 1))
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Left-right with probability 1/2."""
    return torch.where(u[:, :, None, None] < 0.5, x, x.flip(-1))


_TRANSFORM = {"color": color, "translation": translation, "cutout": cutout, "flip": flip}
_WIDTH = {"color": 3, "translation": 2, "cutout": 2, "flip": 1}
