"""Building blocks of both networks: conditional norm, residual blocks up and down, spectral norm."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

RELU_GAIN = math.sqrt(2)


class ConditionalNorm(nn.Module):
    """Normalise, then scale and shift by the text: y = (1 + gamma(text)) * norm(x) + beta(text).

    Conditional batch norm (de Vries et al. 2017, arXiv 1707.00683) for `kind` 'batch'. gamma and beta are MLPs of the
    text embedding whose first layers all norms of G share (`Generator.text`); the last one, here, is their own.
    """

    def __init__(self, channels: int, text_width: int, kind: str) -> None:
        super().__init__()
        if kind == "batch":
            self.norm = nn.BatchNorm2d(channels, affine=False)
        else:
            self.norm = nn.GroupNorm(min(8, channels), channels, affine=False)
        self.gamma_beta = nn.Linear(text_width, 2 * channels)
        nn.init.normal_(self.gamma_beta.weight, std=0.02)
        nn.init.zeros_(self.gamma_beta.bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [N, C, H, W], text [N, W] (features, not the raw embedding) -> [N, C, H, W]."""
        gamma, beta = self.gamma_beta(text)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class UpBlock(nn.Module):
    """Residual block of G that doubles the resolution (Miyato & Koyama 2018, arXiv 1802.05637)."""

    def __init__(self, inputs: int, outputs: int, text_width: int, norm: str) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(inputs, text_width, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ConditionalNorm(outputs, text_width, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, 2H, 2W]."""
        y = F.interpolate(F.relu(self.norm1(x, text)), scale_factor=2, mode="nearest")
        y = self.conv2(F.relu(self.norm2(self.conv1(y), text)))
        return y + F.interpolate(self.skip(x), scale_factor=2, mode="nearest")  # 1x1 first: a quarter of the work


class DownBlock(nn.Module):
    """Residual block of D that halves the resolution, spectral norm throughout (Miyato et al. 2018, arXiv 1802.05957).

    The branch widens in its second convolution only, as theirs does: half the work of widening in the first.
    """

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.first = first  # D's first block sees pixels: no activation before its convolution
        hidden = outputs // 2 if first else inputs
        self.conv1 = spectral_conv(inputs, hidden, 3)
        self.conv2 = spectral_conv(hidden, outputs, 3)
        self.skip = spectral_conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/2, W/2]."""
        y = x if self.first else F.relu(x)
        y = self.conv2(F.relu(self.conv1(y)))
        # A 3x3 convolution whose largest singular value is 1 passes only a third of a random input. The gain of ReLU
        # networks, sqrt(2) per convolution (He et al. 2015, arXiv 1502.01852), keeps features at unit size; without
        # it a D at 64 px (lr 4e-4) gave nearly the same logit to everything after 400 steps.
        return RELU_GAIN * (RELU_GAIN**2 * F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2)))


def power_iteration(network: nn.Module) -> None:
    """One power iteration of every spectral norm below `network`, which `hold_spectral_norms` keeps from iterating."""
    with torch.no_grad():
        for layer in network.modules():
            if parametrize.is_parametrized(layer, "weight"):
                norm = layer.parametrizations.weight[0]
                norm.train()
                _ = layer.weight  # computing it in training mode is what iterates
                norm.eval()


def hold_spectral_norms(network: nn.Module) -> None:
    """Stop spectral norms from iterating in every training forward.

    Otherwise each micro-batch would be judged with slightly other weights: accumulated gradients would differ from
    those of the whole batch (by 0.5 % here), and G's phase would change D.
    """
    for layer in network.modules():
        if parametrize.is_parametrized(layer, "weight"):
            layer.parametrizations.weight[0].eval()


def spectral_conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Convolution with spectral norm: its weight, as a matrix, has largest singular value 1."""
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def spectral_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """Linear layer with spectral norm."""
    return spectral_norm(nn.Linear(inputs, outputs, bias=bias))
