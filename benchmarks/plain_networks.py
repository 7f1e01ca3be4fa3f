"""The networks of `toolkit/networks` as somebody would write them down: for the loop that ours is compared with.

The same layers, weights and results; torch's hook for spectral norm, which renews a weight at each forward in training
mode, one linear layer a norm, default memory layout.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.models import Discriminator, Generator
from toolkit.networks.norms import ConditionalNorm
from toolkit.networks.spectral_norm import SpectralConv2d, SpectralLayer


class PlainGenerator(nn.Module):
    """A copy of G; forward (z, text) -> images."""

    def __init__(self, G: Generator) -> None:
        super().__init__()
        self.net = copy.deepcopy(G).to(memory_format=torch.contiguous_format)

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        net = self.net
        text = net.text(text * math.sqrt(net.cond_dim))
        x = net.start(torch.cat([z, text], dim=1)).unflatten(1, (-1, 4, 4))
        for block in net.blocks:
            y = F.interpolate(F.relu(modulated(block.norm1, x, text)), scale_factor=2)
            y = block.conv2(F.relu(modulated(block.norm2, block.conv1(y), text)))
            x = y + F.interpolate(block.skip(x), scale_factor=2)
        return torch.tanh(net.to_rgb(F.relu(modulated(net.norm, x, text))))


def modulated(norm: ConditionalNorm, x: Tensor, text: Tensor) -> Tensor:
    gamma, beta = norm.gamma_beta(text)[:, :, None, None].chunk(2, dim=1)
    return (1 + gamma) * norm.norm(x) + beta


class PlainDiscriminator(nn.Module):
    """A copy of D with torch's spectral norm; forward (images, text) -> logits [N, d_scales]."""

    def __init__(self, D: Discriminator) -> None:
        super().__init__()
        self.scales = copy.deepcopy(D.scales).to(memory_format=torch.contiguous_format)
        for module in list(self.scales.modules()):
            for name, child in module.named_children():
                if isinstance(child, SpectralLayer):
                    setattr(module, name, plain_layer(child))

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        logits = []
        for k, scale in enumerate(self.scales):
            pooled, _ = scale(F.avg_pool2d(images, 2**k) if k else images)
            logits.append(scale.logits(pooled, text[None])[0])
        return torch.stack(logits, dim=1)


def plain_layer(layer: SpectralConv2d | SpectralLayer) -> nn.Module:
    """torch's layer with `torch.nn.utils.spectral_norm`, with the weight and singular vectors of ours."""
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, SpectralConv2d):
        plain = nn.Conv2d(inputs, outputs, layer.kernel_size, padding=layer.padding)
    else:
        plain = nn.Linear(inputs, outputs, bias=layer.bias is not None)
    plain = nn.utils.spectral_norm(plain.to(layer.weight.device))
    with torch.no_grad():
        plain.weight_orig.copy_(layer.weight)
        plain.weight_u.copy_(layer.u)
        plain.weight_v.copy_(layer.v.flatten())
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain
