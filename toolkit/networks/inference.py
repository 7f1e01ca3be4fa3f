"""G for drawing pictures only: the same function in fewer operations."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.layers import ConditionalNorm
from toolkit.networks.models import TEXT_WIDTH, Generator


class FoldedGenerator(nn.Module):
    """A trained G, its batch norms' statistics folded into the affines that the text decides, in channels_last.

    (1 + gamma) (x - mean) / std + beta = scale x + shift; scale and shift are linear in the text features, and so one
    matrix gives those of all norms. Equal to G in evaluation mode up to rounding. G's weights are shared, not copied;
    what is trained afterwards shows only in part.
    """

    def __init__(self, G: Generator) -> None:
        super().__init__()
        self.G = G.eval().to(memory_format=torch.channels_last)
        norms = G.norms()
        self.halves = [norm.gamma_beta.out_features // 2 for norm in norms for _ in range(2)]
        weights, biases = zip(*(_folded(norm) for norm in norms), strict=True)
        self.affines = nn.Linear(TEXT_WIDTH, sum(self.halves), device="meta")
        folded = {"weight": torch.cat(weights), "bias": torch.cat(biases)}
        self.affines.load_state_dict(folded, assign=True)
        self.requires_grad_(False).eval()

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        """z [N, z_dim] normal, text [N, cond_dim] unit length -> images [N, 3, R, R] in [-1, 1]."""
        G = self.G
        text = G.text(text * math.sqrt(G.cond_dim))
        x = G.start(torch.cat([z, text], dim=1)).unflatten(1, (-1, 4, 4))
        found = iter(self.affines(text)[:, :, None, None].split(self.halves, dim=1))
        for block in G.blocks:
            y = F.interpolate(_modulated(block.norm1, x, next(found), next(found)), scale_factor=2, mode="nearest")
            y = block.conv2(_modulated(block.norm2, block.conv1(y), next(found), next(found)))
            x = y.add_(F.interpolate(block.skip(x), scale_factor=2, mode="nearest"))
        return torch.tanh(G.to_rgb(_modulated(G.norm, x, next(found), next(found))))


def _modulated(norm: ConditionalNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """ReLU of the norm; batch norm itself is in scale and shift."""
    x = x if isinstance(norm.norm, nn.BatchNorm2d) else norm.norm(x)
    return torch.addcmul(shift, x, scale).relu_()


def _folded(norm: ConditionalNorm) -> tuple[Tensor, Tensor]:
    """Weight [2C, W] and bias [2C] of the linear layer that gives scale and shift."""
    weight, bias = norm.gamma_beta.weight.detach().double(), norm.gamma_beta.bias.detach().double()
    (by_scale, by_shift), (scale, shift) = weight.chunk(2), bias.chunk(2)
    scale = scale + 1
    if isinstance(norm.norm, nn.BatchNorm2d):
        mean, variance = norm.norm.running_mean.double(), norm.norm.running_var.double()
        std = (variance + norm.norm.eps).sqrt()
        by_scale, scale = by_scale / std[:, None], scale / std
        by_shift, shift = by_shift - mean[:, None] * by_scale, shift - mean * scale
    kind = norm.gamma_beta.weight.dtype
    return torch.cat([by_scale, by_shift]).to(kind), torch.cat([scale, shift]).to(kind)
