"""Building blocks of both networks: residual blocks up and down, and what may stand between them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.norms import Affine, ConditionalNorm
from toolkit.networks.spectral_norm import SpectralConv2d

RELU_GAIN = math.sqrt(2)
TEXT_WIDTH = 256
"""Width of the text features inside G and D, whatever the width of the embedding."""
STD_EPSILON = 1e-8
"""Added to the variance of a group of images (Karras et al. 2018)."""


def channels_at(size: int, resolution: int, base_ch: int) -> int:
    """Channels where feature maps are size x size: base_ch at full resolution, doubled per halving, 16-fold at most."""
    return base_ch * min(16, resolution // size)


class UpBlock(nn.Module):
    """Residual block of G that doubles the resolution (Miyato & Koyama 2018, arXiv 1802.05637).

    The branch counts `scale` times: skip(x) + scale * branch(x) (Lim et al. 2017, arXiv 1707.02921, sect. 3.3).
    """

    def __init__(self, inputs: int, outputs: int, width: int, norm: str, scale: float = 1.0) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(inputs, width, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ConditionalNorm(outputs, width, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)
        self.scale = scale

    def forward(self, x: Tensor, affine1: Affine, affine2: Affine) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, 2H, 2W]."""
        y = F.interpolate(self.norm1(x, affine1), scale_factor=2, mode="nearest")
        y = self.conv2(self.norm2(self.conv1(y), affine2))
        skipped = F.interpolate(self.skip(x), scale_factor=2, mode="nearest")  # 1x1 first: a quarter of the work
        return skipped.add_(y, alpha=self.scale)


class SkipExcitation(nn.Module):
    """Skip-layer channel-wise excitation: a small map gates the channels of a large one (FastGAN).

    y = sigmoid(conv1(LeakyReLU(conv4(pool4(small))))) * large        Liu et al. 2021, arXiv 2101.04775, sect. 3.1

    pool4 averages to 4x4 (adaptive pooling; sides here are powers of two), conv4 is 4x4 without padding.
    """

    def __init__(self, small: int, large: int) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(small, large, 4)
        self.conv1 = nn.Conv2d(large, large, 1)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        """[N, small, s, s] with s >= 4 and [N, large, S, S] -> [N, large, S, S]."""
        return large * self.gate(small)

    def gate(self, small: Tensor) -> Tensor:
        """[N, large, 1, 1] in (0, 1)."""
        side = small.shape[-1]
        pooled = F.avg_pool2d(small, side // 4) if side > 4 else small
        return torch.sigmoid(self.conv1(F.leaky_relu(self.conv4(pooled), 0.1)))


class DownBlock(nn.Module):
    """Residual block of D that halves the resolution, spectral norm throughout (Miyato et al. 2018, arXiv 1802.05957).

    The branch widens in its second convolution only, as theirs does: half the work of widening in the first.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, first: bool = False) -> None:
        super().__init__()
        self.first = first  # D's first block sees pixels: no activation before its convolution
        self.conv1 = SpectralConv2d(inputs, hidden, 3)
        self.conv2 = SpectralConv2d(hidden, outputs, 3)
        self.skip = SpectralConv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/2, W/2]."""
        y = x if self.first else F.relu(x)
        y = self.conv2(F.relu(self.conv1(y)))
        # A 3x3 convolution whose largest singular value is 1 passes only a third of a random input. The gain of ReLU
        # networks, sqrt(2) per convolution (He et al. 2015, arXiv 1502.01852), keeps features at unit size; without
        # it a D at 64 px (lr 4e-4) gave nearly the same logit to everything after 400 steps.
        return RELU_GAIN * torch.add(self.skip(F.avg_pool2d(x, 2)), F.avg_pool2d(y, 2), alpha=RELU_GAIN**2)


def with_minibatch_std(x: Tensor, counts: list[int], group: int = 4) -> Tensor:
    """x [N, C, H, W] -> [N, C + 1, H, W]: one more channel that says how far images of a group differ.

    The standard deviation of each feature and position over the group, averaged over all of them (Karras et al. 2018,
    arXiv 1710.10196, sect. 3). Groups are up to `group` consecutive images, of nearly equal size where N is no
    multiple.
    None reaches over a border between the `counts` images of one look and the next, as of real and generated ones.
    """
    found = torch.cat([_deviations(part, group) for part in x.split(counts)])
    return torch.cat([x, found.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


def _deviations(x: Tensor, group: int) -> Tensor:
    """[N, C, H, W] -> [N], in fp32 at least: small differences between large features."""
    groups = -(-len(x) // group)
    members, larger = divmod(len(x), groups)
    counts = (members + 1, members)
    parts = x.split([larger * counts[0], (groups - larger) * counts[1]])
    return torch.cat([_deviation(part, count) for part, count in zip(parts, counts, strict=True) if len(part)])


def _deviation(x: Tensor, members: int) -> Tensor:
    each = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (-1, members))
    std = (each.var(dim=1, correction=0) + STD_EPSILON).sqrt().flatten(1).mean(dim=1)  # R1: finite where images agree
    return std[:, None].expand(-1, members).flatten()
