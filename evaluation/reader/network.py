"""The reader's network, and what it does to images while it learns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.matching import MatchingHead

WIDTHS = (32, 64, 128, 256)
"""Channels; 1.2 million parameters."""
SIDE = 64
"""Larger images are reduced to this many pixels: a dish can be told at that, and teaching takes minutes on a CPU."""
SPACE = 128
"""Width of the space in which images meet captions that are all different."""


class Reader(nn.Module):
    """Convolutions, and one of two ends: a score for each of K captions, or a place beside text vectors."""

    def __init__(self, side: int, captions: int, cond_dim: int) -> None:
        """`captions`: how many are told apart; 0: images meet text vectors of width `cond_dim`."""
        super().__init__()
        layers = [_layer(3, WIDTHS[0], 1 if side <= 32 else 2)]
        for before, after in zip(WIDTHS, WIDTHS[1:], strict=False):
            layers += [_layer(before, after, 2), _layer(after, after, 1)]
        self.body = nn.Sequential(*layers)
        self.drop = nn.Dropout(0.3)
        self.choose = nn.Linear(WIDTHS[-1], captions) if captions else None
        self.match = None if captions else MatchingHead(WIDTHS[-1], cond_dim, SPACE)

    def features(self, images: Tensor) -> Tensor:
        """float [N, 3, S, S] in [-1, 1] -> [N, 256]."""
        return self.body(images).mean(dim=(2, 3))


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def prepared(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, H] -> float32 [N, 3, S, S] in [-1, 1], S at most SIDE."""
    found = images.float() / 127.5 - 1
    if found.shape[-1] > SIDE:
        found = F.interpolate(found, size=(SIDE, SIDE), mode="area")
    return found.contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, draws: torch.Generator) -> Tensor:
    """Flipped, scaled by 0.75 to 1.05, shifted by up to a tenth, brighter or darker, with more or less contrast."""
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=draws) * (high - low) + low

    flipped = (uniform(0, 1) < 0.5)[:, None, None, None]
    images = torch.where(flipped, images.flip(3), images)
    scale, moved = uniform(0.75, 1.05), uniform(-0.2, 0.2, 2)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = moved
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = uniform(0.8, 1.2, 1, 1, 1), uniform(-0.15, 0.15, 1, 1, 1)
    return ((images - mean) * contrast + mean + brightness).contiguous(memory_format=torch.channels_last)
