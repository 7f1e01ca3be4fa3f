"""A discriminator on the features of a frozen, pretrained network: small trained heads on maps of several depths.

Projected GAN (Sauer et al. 2021, arXiv 2111.01007), Vision-aided GAN (Kumari et al. 2022, arXiv 2112.09130),
StyleGAN-T (Sauer et al. 2023, arXiv 2301.09515, sect. 4.2: ViT tokens of equally spaced layers, spectral-norm heads,
projection conditioning on the text).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.architecture import ModelConfig
from toolkit.networks.backbones import FrozenBackbone
from toolkit.networks.layers import RELU_GAIN, TEXT_WIDTH, with_minibatch_std
from toolkit.networks.spectral_norm import SpectralConv2d, SpectralLinear

POOLED = 8.0
"""What a head's mean over positions counts, so that its first logits of photos spread as ScaleDiscriminator's do
(standard deviation about 1; measured on three timm networks of random weights)."""


class FrozenHead(nn.Module):
    """Real and fitting its caption? By one map, with projection conditioning as in ScaleDiscriminator."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        width, self.minibatch_std, self.std_group = config.frozen_width, config.frozen_std, config.std_group
        self.narrow = SpectralConv2d(channels, width, 1)
        self.conv = SpectralConv2d(width + self.minibatch_std, width, config.frozen_kernel)
        self.linear = SpectralLinear(width, 1)
        self.text = nn.Sequential(
            SpectralLinear(config.cond_dim, TEXT_WIDTH), nn.SiLU(), SpectralLinear(TEXT_WIDTH, width, bias=False)
        )
        self.text_scale = math.sqrt(config.cond_dim)

    def forward(self, features: Tensor, texts: Tensor, counts: list[int]) -> Tensor:
        """Normalised map [N, C, h, w], texts [K, N, cond_dim] unit length -> logits [K, N]. `counts`: how many images
        belong together."""
        x = RELU_GAIN * F.relu(self.narrow(features))
        seen = with_minibatch_std(x, counts, self.std_group) if self.minibatch_std else x
        x = x + RELU_GAIN * F.relu(self.conv(seen))
        pooled = POOLED * x.mean(dim=(2, 3))
        projection = (self.text(texts * self.text_scale) * pooled).sum(dim=2) / math.sqrt(pooled.shape[1])
        return self.linear(pooled).squeeze(1) + projection


class FrozenDiscriminator(nn.Module):
    """Heads on a backbone that moves with them and is otherwise none of theirs.

    The backbone is held outside of torch's registry: so optimizer, DDP, gradient clipping, `requires_grad_`, `train`
    and checkpoints see the heads alone, without each of them having to know an exception. What registration is needed
    for, moving to the device and to another memory format, is `_apply`.
    """

    def __init__(self, backbone: FrozenBackbone, config: ModelConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList(FrozenHead(channels, config) for channels in backbone.channels)
        self._held = (backbone,)

    @property
    def backbone(self) -> FrozenBackbone:
        return self._held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._held[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, images: Tensor, texts: Tensor, counts: list[int] | None = None, penalised: bool = False
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """images [N, 3, R, R] in [-1, 1], texts [K, N, cond_dim] unit length -> per depth logits [K, N], the maps, and
        if `penalised` R1 of the heads [N]. `counts`: how many images belong together; by default all.

        Each position of a map is normalised over its channels: backbones and depths differ in scale by more than a
        hundred times, and spectral norm would hand that on to the logits.
        """
        maps = [_normalised(found) for found in self._held[0](images)]
        counts = counts or [len(images)]
        if not penalised:
            return self.by_heads(maps, texts, counts), maps, None
        # As with R1 of D itself: in fp32, and from within.
        with torch.autocast(images.device.type, enabled=False):
            # Differentiable by a zero that depends on a weight: torch.compile takes no requires_grad_ inside its graph.
            nothing = 0 * next(self.parameters()).sum()
            maps = [found.detach().to(texts.dtype) + nothing for found in maps]
            logits = self.by_heads(maps, texts, counts)
            return logits, maps, heads_penalty(logits, maps)

    def by_heads(self, maps: list[Tensor], texts: Tensor, counts: list[int]) -> list[Tensor]:
        return [head(found, texts, counts) for head, found in zip(self.heads, maps, strict=True)]


def heads_penalty(logits: list[Tensor], maps: list[Tensor]) -> Tensor:
    """1/2 |d (mean of the heads' logits) / d maps|^2 [N], over all maps together; own captions are the first.

    R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9) in the space of the normalised maps: no second derivative of
    the backbone, which costs as much again and which fused attention lacks.
    """
    whole = torch.stack([found[0] for found in logits]).mean(dim=0).sum()
    gradients = torch.autograd.grad(whole, maps, create_graph=True)
    return torch.stack([found.square().sum(dim=(1, 2, 3)) for found in gradients]).sum(dim=0) / 2


def _normalised(found: Tensor) -> Tensor:
    """[N, C, h, w], mean 0 and variance 1 over C."""
    return F.layer_norm(found.permute(0, 2, 3, 1), found.shape[1:2]).permute(0, 3, 1, 2)
