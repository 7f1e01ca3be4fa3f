"""The two networks. They know no device, process, autocast region (but that of R1) or augmentation."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.networks.architecture import ModelConfig
from toolkit.networks.attention import SelfAttention
from toolkit.networks.backbones import FrozenBackbone, weightless_backbone
from toolkit.networks.frozen_features import FrozenDiscriminator
from toolkit.networks.layers import TEXT_WIDTH, SkipExcitation, UpBlock, channels_at
from toolkit.networks.matching import MatchingHead, readable
from toolkit.networks.norms import ConditionalNorm, Modulation
from toolkit.networks.scale_discriminator import ScaleDiscriminator, pooled
from toolkit.networks.spectral_norm import FIRST_ITERATIONS, SpectralNorms

MATCH_DEPTHS = 3
"""Of how many of its last blocks the matching head reads D's maps."""
TEXT_EPSILON = 1e-8
"""Added to the mean square of G's text features."""


class Generator(nn.Module):
    """ResNet G: (z, text) -> image, 4x4 -> ... -> resolution, the text modulating every norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sides = [4 * 2**i for i in range(int(math.log2(config.resolution)) - 1)]
        widths = [channels_at(side, config.resolution, config.base_ch) for side in sides]
        noise = config.g_modulation == "text+noise"
        read = TEXT_WIDTH + (config.z_dim if noise else 0)
        self.cond_dim, self.text_norm = config.cond_dim, config.g_text_norm
        self.text = nn.Sequential(
            nn.Linear(config.cond_dim, TEXT_WIDTH), nn.SiLU(), nn.Linear(TEXT_WIDTH, TEXT_WIDTH), nn.SiLU()
        )
        self.start = nn.Linear(config.z_dim + TEXT_WIDTH, widths[0] * 16)
        self.blocks = nn.ModuleList(
            UpBlock(before, after, read, config.g_norm, config.residual_scale)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norm = ConditionalNorm(widths[-1], read, config.g_norm)
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)
        # What is off by default comes last and draws no random numbers: the weights above keep their seeds.
        self.modulation = Modulation(self.norms(), TEXT_WIDTH, config.g_text_blocks, noise)
        self.attention = nn.ModuleDict(
            {
                str(i): SelfAttention(width, nn.Conv2d)
                for i, (side, width) in enumerate(zip(sides, widths, strict=True))
                if side in config.attention_sides
            }
        )
        gates = zip(widths[:2], widths[-2:], strict=True) if config.skip_excitation else ()
        self.excitation = nn.ModuleList(SkipExcitation(small, large) for small, large in gates)

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        """z [N, z_dim] normal, text [N, cond_dim] unit length -> images [N, 3, R, R] in [-1, 1]."""
        text = self._text_features(text)
        x = self.start(torch.cat([z, text], dim=1)).unflatten(1, (-1, 4, 4))
        *pairs, last = self.modulation(self.norms(), text, z)
        small: list[Tensor] = []  # maps of 4 and 8 pixels, which gate those of R/2 and R
        for i, (block, first, second) in enumerate(zip(self.blocks, pairs[::2], pairs[1::2], strict=True)):
            x = self.attention[str(i)](x) if str(i) in self.attention else x
            small = small if len(small) == len(self.excitation) else [*small, x]
            x = block(x, first, second)
            late = i + 2 - len(self.blocks)
            x = self.excitation[late](small[late], x) if late >= 0 and self.excitation else x
        return torch.tanh(self.to_rgb(self.norm(x, last)))

    def _text_features(self, text: Tensor) -> Tensor:
        """[N, cond_dim] -> [N, TEXT_WIDTH], of mean square 1 with g_text_norm.

        torch's default init and SiLU, twice, leave a root mean square of 0.09 beside z's 1: so StyleGAN2's mapping
        network normalises its latents (Karras et al. 2020, arXiv 1912.04958).
        """
        text = self.text(text * math.sqrt(self.cond_dim))
        if not self.text_norm:
            return text
        return text * (text.float().square().mean(dim=1, keepdim=True) + TEXT_EPSILON).rsqrt().to(text.dtype)

    def norms(self) -> list[ConditionalNorm]:
        """In the order of the forward pass."""
        found = []
        for block in self.blocks:
            assert isinstance(block, UpBlock)
            found += [block.norm1, block.norm2]
        return [*found, self.norm]


class Look(NamedTuple):
    """Images that D is asked about."""

    images: Tensor
    """[N, 3, R, R] in [-1, 1]."""
    text: Tensor
    """[N, cond_dim], unit length."""
    mismatched: Tensor | None = None
    """[N, cond_dim], unit length: other captions for the same images."""
    penalised: bool = False
    """Whether D will be differentiated by these images: in fp32, for R1 in half precision overflows."""
    features: bool = False
    """Whether the blocks' feature maps are wanted."""
    caption: Tensor | None = None
    """[N, cond_dim], unit length: the captions without noise, if they are to be found among `others`."""
    others: Tensor | None = None
    """[K, cond_dim], unit length: captions among which each image's own is to be found; the same for all looks."""
    heads_penalised: bool = False
    """Whether R1 of the heads on the frozen backbone is wanted; their part is in fp32 then."""


class Verdict(NamedTuple):
    """What D says of a look, one column per scale, and behind them one per depth of the frozen backbone."""

    logits: Tensor
    """[N, columns]: real and fitting its caption (high) or not (low)."""
    mismatched: Tensor | None
    """[N, columns] for the same images with the mismatched captions, if given."""
    features: tuple[Tensor, ...]
    """Feature maps of every block and scale if asked for, else (). Accelerate copies half-precision outputs to fp32."""
    match: Tensor | None = None
    """[N, 1 + K]: how well each image fits its own caption and each of `others`, if given."""
    heads_penalty: Tensor | None = None
    """[N], 1/2 |d (mean frozen logit) / d (normalised maps)|^2 if asked for."""


class Discriminator(nn.Module):
    """D at `d_scales` resolutions, each an independent ResNet on the average-pooled image; with `frozen_backbone`
    beside them (with `d_scales` 0 instead of them) heads on the features of a pretrained network.

    Its spectral norms move once per training step, when `iterate` is called after D's weights have changed, never by
    themselves in a forward: each micro-batch would be judged with slightly other weights, accumulated gradients would
    differ from those of the whole batch (by 0.5 % here), and G's phase would change D.
    """

    def __init__(self, config: ModelConfig, backbone: FrozenBackbone | None = None) -> None:
        """Without `backbone` the config's has no weights: such a D can be counted and saved, but not asked."""
        super().__init__()
        self.scales = nn.ModuleList(
            ScaleDiscriminator(config.resolution // 2**k, config) for k in range(config.d_scales)
        )
        self.frozen = None
        if config.frozen_backbone:
            backbone = backbone or weightless_backbone(config.frozen_backbone, config.frozen_size)
            self.frozen = FrozenDiscriminator(backbone, config)
        self.match = None
        if config.match_width:
            channels = backbone.channels if backbone else self._full_size.widths[-MATCH_DEPTHS:]
            self.match = MatchingHead(sum(channels), config.cond_dim, config.match_width)
        self.norms = SpectralNorms(self)
        self.iterate(FIRST_ITERATIONS)

    def iterate(self, times: int = 1) -> None:
        """Power iteration of all spectral norms."""
        self.norms.iterate(times)

    def forward(self, *looks: Look) -> tuple[Verdict, ...]:
        """A verdict on each look. Those that nothing keeps apart are judged in one pass: half the operations of two."""
        self.norms.normalise()
        if len(looks) > 1 and not any(look.penalised or look.features or look.heads_penalised for look in looks):
            return self._judge_together(looks)
        return tuple(self._judge(look) for look in looks)

    def _judge(self, look: Look, counts: list[int] | None = None) -> Verdict:
        """`counts`: how many images of each look, where several are judged as one."""
        # The image's features serve both captions: the second costs next to nothing.
        texts = torch.stack([look.text] if look.mismatched is None else [look.text, look.mismatched])
        if not look.penalised:
            logits, maps = self._by_scales(look, texts, counts)
        else:
            # From within: around a network prepared by Accelerate it would have no effect.
            with torch.autocast(look.images.device.type, enabled=False):
                exact = look._replace(images=look.images.to(self.norms.layers[0].weight.dtype))
                logits, maps = self._by_scales(exact, texts, counts)
        frozen_maps: list[Tensor] = []
        penalty = match = None
        if self.frozen is not None:
            # R1 and R2 are of the trained columns: fused attention has no second derivative.
            seen = look.images.detach() if look.penalised else look.images
            more, frozen_maps, penalty = self.frozen(seen, texts, counts, look.heads_penalised)
            logits = [*logits, *more]
        if self.match is not None and look.caption is not None and look.others is not None:
            match = self.match(self._readable(maps, frozen_maps), look.caption, look.others)
        by_caption, features = torch.stack(logits, dim=2), (*maps, *frozen_maps) if look.features else ()
        others = None if look.mismatched is None else by_caption[1]
        return Verdict(by_caption[0], others, features, match, penalty)

    def _readable(self, maps: list[Tensor], frozen_maps: list[Tensor]) -> Tensor:
        """What the matching head sees of images: the frozen features where there are some, else D's last three maps
        at full size."""
        if frozen_maps:
            return readable([found.mean(dim=(2, 3)) for found in frozen_maps])
        return readable([pooled(found) for found in maps[: len(self._full_size.blocks)][-MATCH_DEPTHS:]])

    @property
    def _full_size(self) -> ScaleDiscriminator:
        first = self.scales[0]
        assert isinstance(first, ScaleDiscriminator)
        return first

    def _judge_together(self, looks: tuple[Look, ...]) -> tuple[Verdict, ...]:
        second = None
        if any(look.mismatched is not None for look in looks):
            second = torch.cat([look.text if look.mismatched is None else look.mismatched for look in looks])
        counts = [len(look.images) for look in looks]
        images, text = torch.cat([look.images for look in looks]), torch.cat([look.text for look in looks])
        captions = torch.cat([look.text if look.caption is None else look.caption for look in looks])
        found = next((look.others for look in looks if look.others is not None), None)
        whole = self._judge(Look(images, text, second, caption=captions, others=found), counts)
        others = [None] * len(looks) if whole.mismatched is None else whole.mismatched.split(counts)
        matches = [None] * len(looks) if whole.match is None else whole.match.split(counts)
        return tuple(
            Verdict(logits, None if look.mismatched is None else other, (), None if look.others is None else match)
            for look, logits, other, match in zip(looks, whole.logits.split(counts), others, matches, strict=True)
        )

    def _by_scales(self, look: Look, texts: Tensor, counts: list[int] | None) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of each scale, and all feature maps, scale by scale."""
        logits: list[Tensor] = []
        features: list[Tensor] = []
        for k, scale in enumerate(self.scales):
            assert isinstance(scale, ScaleDiscriminator)
            seen, maps = scale(F.avg_pool2d(look.images, 2**k) if k else look.images, counts)
            logits.append(scale.logits(seen, texts))
            features += maps
        return logits, features


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
