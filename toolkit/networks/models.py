"""The two networks. They know no device, process, autocast region (but `fp32`) or augmentation."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.config import ModelConfig
from toolkit.networks.layers import ConditionalNorm, DownBlock, UpBlock, hold_spectral_norms, spectral_linear

TEXT_WIDTH = 256
"""Width of the text features inside G and D, whatever the width of the embedding."""


def channels_at(size: int, config: ModelConfig) -> int:
    """Channels where feature maps are size x size: base_ch at full resolution, doubled per halving, 16-fold at most."""
    return config.base_ch * min(16, config.resolution // size)


class Generator(nn.Module):
    """ResNet G: (z, text) -> picture, 4x4 -> ... -> resolution, the text modulating every norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = [4 * 2**i for i in range(int(math.log2(config.resolution)) - 1)]
        widths = [channels_at(size, config) for size in sizes]
        self.cond_dim = config.cond_dim
        self.text = nn.Sequential(
            nn.Linear(config.cond_dim, TEXT_WIDTH), nn.SiLU(), nn.Linear(TEXT_WIDTH, TEXT_WIDTH), nn.SiLU()
        )
        self.start = nn.Linear(config.z_dim + TEXT_WIDTH, widths[0] * 16)
        self.blocks = nn.ModuleList(
            UpBlock(before, after, TEXT_WIDTH, config.g_norm) for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norm = ConditionalNorm(widths[-1], TEXT_WIDTH, config.g_norm)
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        """z [N, z_dim] normal, text [N, cond_dim] unit length -> images [N, 3, R, R] in [-1, 1]."""
        text = self.text(text * math.sqrt(self.cond_dim))  # unit variance per element, as the layers' init expects
        x = self.start(torch.cat([z, text], dim=1)).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, text)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x, text))))


class Verdict(NamedTuple):
    """What D says of a batch, one column per scale."""

    logits: Tensor
    """[N, d_scales]: real and fitting its caption (high) or not (low)."""
    mismatched: Tensor | None
    """[N, d_scales] for the same pictures with the mismatched captions, if given."""
    features: tuple[Tensor, ...]
    """Feature maps of every block and scale if asked for, else (). Accelerate copies half-precision outputs to fp32."""


class ScaleDiscriminator(nn.Module):
    """ResNet D at one resolution with projection conditioning: logit = w.h(x) + (V text).h(x).

    Miyato & Koyama 2018, arXiv 1802.05637, with an MLP of the text embedding in place of the class embedding.
    """

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        widths = [channels_at(size // 2**i, config) for i in range(1, int(math.log2(size)) - 1)]
        self.blocks = nn.ModuleList(
            DownBlock(before, after, first=before == 3) for before, after in zip([3, *widths], widths, strict=False)
        )
        self.linear = spectral_linear(widths[-1], 1)
        self.text = nn.Sequential(
            spectral_linear(config.cond_dim, TEXT_WIDTH),
            nn.SiLU(),
            spectral_linear(TEXT_WIDTH, widths[-1], bias=False),
        )
        self.text_scale = math.sqrt(config.cond_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images [N, 3, S, S] -> pooled features [N, C] and the blocks' feature maps."""
        maps = []
        for block in self.blocks:
            images = block(images)
            maps.append(images)
        return F.relu(images).sum(dim=(2, 3)), maps

    def logits(self, pooled: Tensor, texts: Tensor) -> Tensor:
        """pooled [N, C], texts [K, N, cond_dim] -> [K, N]: the same pictures judged with K captions each.

        All captions in one call: a second one would be judged with other weights, one power iteration on.
        """
        projection = (self.text(texts * self.text_scale) * pooled).sum(dim=2) / math.sqrt(pooled.shape[1])
        return self.linear(pooled).squeeze(1) + projection


class Discriminator(nn.Module):
    """D at `d_scales` resolutions, each an independent ResNet on the average-pooled picture."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            ScaleDiscriminator(config.resolution // 2**k, config) for k in range(config.d_scales)
        )
        self.train()

    def train(self, mode: bool = True) -> "Discriminator":
        """Spectral norm iterates once per training step (`layers.power_iteration`), never by itself in a forward."""
        super().train(mode)
        hold_spectral_norms(self)
        return self

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        mismatched: Tensor | None = None,
        fp32: bool = False,
        features: bool = False,
    ) -> Verdict:
        """images [N, 3, R, R] in [-1, 1], text and mismatched [N, cond_dim] unit length; `features` returns those too.

        `fp32` leaves autocast from within: around a network prepared by Accelerate that would have no effect, and R1
        in half precision overflows.
        """
        if fp32:
            with torch.autocast(images.device.type, enabled=False):
                return self._judge(images.float(), text, mismatched, features)
        return self._judge(images, text, mismatched, features)

    def _judge(self, images: Tensor, text: Tensor, mismatched: Tensor | None, with_features: bool) -> Verdict:
        # The picture's features serve both captions: the second costs next to nothing.
        texts = torch.stack([text] if mismatched is None else [text, mismatched])
        logits, features = [], []
        for k, scale in enumerate(self.scales):
            pooled, maps = scale(F.avg_pool2d(images, 2**k) if k else images)
            logits.append(scale.logits(pooled, texts))
            features += maps if with_features else []
        by_caption = torch.stack(logits, dim=2)
        return Verdict(by_caption[0], None if mismatched is None else by_caption[1], tuple(features))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
