"""Building blocks of both networks: conditional norm, residual blocks up and down."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.spectral_norm import SpectralConv2d

RELU_GAIN = math.sqrt(2)

Affine = tuple[Tensor, Tensor]
"""Scale and shift of a norm by the text, [N, C, 1, 1] each."""


class BatchNorm(nn.BatchNorm2d):
    """torch's without affine and without its count of batches, which only an average over all of them needs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, self.momentum, self.eps)


class ConditionalNorm(nn.Module):
    """Normalise, then scale and shift by the text: y = (1 + gamma(text)) * norm(x) + beta(text).

    Conditional batch norm (de Vries et al. 2017, arXiv 1707.00683) for `kind` 'batch'. gamma and beta are MLPs of the
    text embedding whose first layers all norms of G share (`Generator.text`); the last one, here, is their own.
    """

    def __init__(self, channels: int, text_width: int, kind: str) -> None:
        super().__init__()
        if kind == "batch":
            self.norm = BatchNorm(channels, affine=False)
        else:
            self.norm = nn.GroupNorm(min(8, channels), channels, affine=False)
        self.gamma_beta = nn.Linear(text_width, 2 * channels)
        nn.init.normal_(self.gamma_beta.weight, std=0.02)
        nn.init.zeros_(self.gamma_beta.bias)

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        scale, shift = affine
        return scale * self.norm(x) + shift


def affines(norms: list[ConditionalNorm], text: Tensor, identity: Tensor) -> list[Affine]:
    """The affine of each norm, in order, for text features [N, W]: one matrix product for all of them.

    `identity` [all gammas and betas] is `identity_of(norms)`: what gamma and beta are added to.
    """
    layers = [norm.gamma_beta for norm in norms]
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    halves = [layer.out_features // 2 for layer in layers for _ in range(2)]
    found = F.linear(text, weight, bias + identity)[:, :, None, None].split(halves, dim=1)
    return list(zip(found[::2], found[1::2], strict=True))


def identity_of(norms: list[ConditionalNorm]) -> Tensor:
    """1 for every gamma, 0 for every beta: scale and shift without any text."""
    halves = [norm.gamma_beta.out_features // 2 for norm in norms]
    return torch.cat([torch.cat([torch.ones(half), torch.zeros(half)]) for half in halves])


class UpBlock(nn.Module):
    """Residual block of G that doubles the resolution (Miyato & Koyama 2018, arXiv 1802.05637)."""

    def __init__(self, inputs: int, outputs: int, text_width: int, norm: str) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(inputs, text_width, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ConditionalNorm(outputs, text_width, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, affine1: Affine, affine2: Affine) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, 2H, 2W]."""
        y = F.interpolate(F.relu(self.norm1(x, affine1)), scale_factor=2, mode="nearest")
        y = self.conv2(F.relu(self.norm2(self.conv1(y), affine2)))
        return y + F.interpolate(self.skip(x), scale_factor=2, mode="nearest")  # 1x1 first: a quarter of the work


class DownBlock(nn.Module):
    """Residual block of D that halves the resolution, spectral norm throughout (Miyato et al. 2018, arXiv 1802.05957).

    The branch widens in its second convolution only, as theirs does: half the work of widening in the first.
    """

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.first = first  # D's first block sees pixels: no activation before its convolution
        hidden = outputs // 2 if first else inputs
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
