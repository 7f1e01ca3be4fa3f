"""D at one resolution."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.architecture import ModelConfig
from toolkit.networks.attention import SelfAttention
from toolkit.networks.layers import TEXT_WIDTH, DownBlock, channels_at, with_minibatch_std
from toolkit.networks.spectral_norm import SpectralConv2d, SpectralLinear


class ScaleDiscriminator(nn.Module):
    """ResNet D at one resolution with projection conditioning: logit = w.h(x) + sum_k (V_k text).h_k(x) / sqrt(C_k).

    Miyato & Koyama 2018, arXiv 1802.05637, with an MLP of the text embedding in place of the class embedding. h_1 = h
    are the pooled features of the last block; with d_projections above 1, h_2 those of the block before it, and so on,
    each with a V_k of its own. The terms are summed, not averaged: with spectral norm no layer could make up for a
    smaller share, and the last block's would weaken with each further one.
    """

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        sides = [size // 2**i for i in range(1, int(math.log2(size)) - 1)]
        widths = [channels_at(side, config.resolution, config.d_base_ch or config.base_ch) for side in sides]
        self.minibatch_std, self.std_group, self.widths = config.minibatch_std, config.std_group, widths
        self.blocks = nn.ModuleList()
        for before, after in zip([3, *widths], widths, strict=False):
            first, last = not self.blocks, len(self.blocks) == len(sides) - 1
            hidden = after // 2 if first else before
            self.blocks.append(DownBlock(before + (last and self.minibatch_std), after, hidden, first))
        self.linear = SpectralLinear(widths[-1], 1)
        self.text = nn.Sequential(
            SpectralLinear(config.cond_dim, TEXT_WIDTH),
            nn.SiLU(),
            SpectralLinear(TEXT_WIDTH, widths[-1], bias=False),
        )
        self.text_scale = math.sqrt(config.cond_dim)
        earlier = widths[-2 : -config.d_projections - 1 : -1]
        self.projections = nn.ModuleList(SpectralLinear(TEXT_WIDTH, width, bias=False) for width in earlier)
        self.attention = nn.ModuleDict(
            {
                str(i): SelfAttention(width, SpectralConv2d)
                for i, (side, width) in enumerate(zip(sides, widths, strict=True))
                if side in config.attention_sides
            }
        )

    def forward(self, images: Tensor, counts: list[int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """images [N, 3, S, S] -> pooled features [N, C_k] that the text is projected on, the last block's first, and
        the blocks' feature maps. `counts`: how many images belong together; by default all."""
        x, maps = images, []
        for i, block in enumerate(self.blocks):
            if self.minibatch_std and i == len(self.blocks) - 1:
                x = with_minibatch_std(x, counts or [len(x)], self.std_group)
            x = block(x)
            x = self.attention[str(i)](x) if str(i) in self.attention else x
            maps.append(x)
        return [pooled(maps[-1 - k]) for k in range(1 + len(self.projections))], maps

    def logits(self, pooled: list[Tensor], texts: Tensor) -> Tensor:
        """pooled [N, C_k] each, texts [K, N, cond_dim] -> [K, N]: the same images judged with K captions each.

        All captions in one call: a second one would be judged with other weights, one power iteration on.
        """
        narrow, activation, last = self.text
        features = activation(narrow(texts * self.text_scale))
        logits = self.linear(pooled[0]).squeeze(1)
        for layer, seen in zip((last, *self.projections), pooled, strict=True):
            logits = logits + (layer(features) * seen).sum(dim=2) / math.sqrt(seen.shape[1])
        return logits


def pooled(features: Tensor) -> Tensor:
    """[N, C, S, S] -> [N, C]: the sum over positions, in all sizes as if there were 4x4."""
    area = features.shape[2] * features.shape[3]
    pooled = F.relu(features).sum(dim=(2, 3))
    return pooled if area == 16 else pooled * (16 / area)
