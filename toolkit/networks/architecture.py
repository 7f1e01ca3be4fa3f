"""What rebuilds both networks: every option of their architecture, declared once."""

import math
import re
from dataclasses import dataclass, fields
from typing import Literal

from toolkit.errors import UserError, check, named_in

EARLIER = {"g_modulation": "text", "minibatch_std": False, "g_text_norm": False, "match_width": 0,
           "std_group": 4}  # fmt: skip
"""What networks were before these options existed: a file that does not name them is as old as that."""
EARLIER_HEADS = {"frozen_width": 256, "frozen_kernel": 3, "frozen_std": False}
"""The same of the heads on a frozen backbone, where there is one."""


@dataclass(frozen=True)
class ModelConfig:
    """Networks

    What rebuilds them; travels in the metadata of `generator.safetensors`."""

    resolution: int = 128
    """Width and height of the images, in pixels: a power of two from 16 to 256, equal to that of the shards."""
    base_ch: int = 32
    """Channels at full resolution; doubled with each halving of the resolution, up to 16 times."""
    z_dim: int = 128
    """Width of the noise vector z."""
    cond_dim: int = 768
    """Width of the text embeddings: 768 for CLIP ViT-L-14 and for the hashing encoder."""
    d_scales: int = 1
    """At how many resolutions D looks at an image: full size, half, quarter, ...; 0: by frozen_backbone alone."""
    g_norm: Literal["batch", "group", "instance", "rms", "pixel"] = "batch"
    """G's conditional norm. 'batch' depends on the other images of the local batch; the others do not: results are
    equal for any number of processes. 'group' and 'instance' normalise groups of channels or each channel of an image,
    'rms' divides an image's features by their root mean square, 'pixel' those of each position by theirs."""
    g_modulation: Literal["text", "text+noise"] = "text+noise"
    """What scales and shifts G's norms: the text alone, or the text and the noise vector z."""
    g_text_norm: bool = True
    """Whether G's text features are brought to a mean square of 1, as z has it; else they start 12 times weaker."""
    g_text_blocks: bool = False
    """Whether each block of G reads the text through a layer of its own, in place of one for all."""
    attention: str = ""
    """Sides of the feature maps of G and D over which self-attention is taken, such as '16' or '16,32'; '' = none.
    Memory grows with the fourth power of the side."""
    skip_excitation: bool = False
    """Whether G's maps of 4 and 8 pixels gate the channels of those at half and at full resolution."""
    minibatch_std: bool = True
    """Whether D sees how much consecutive images differ, which a G that draws always the same gives away. Results then
    depend on the micro-batches, unless these are multiples of std_group."""
    std_group: int = 4
    """How many images at most are compared by minibatch_std; with pairs 2."""
    residual_scale: float = 1.0
    """What G's residual branches are multiplied by, above 0 and at most 1: below 1 the skips weigh more."""
    d_projections: int = 1
    """At how many of the last feature depths of each of D's resolutions, at most all, the text is compared with the
    image."""
    d_base_ch: int = 0
    """base_ch of D; 0 = that of G."""
    match_width: int = 128
    """Width of the space in which D finds an image's own caption among others (match_weight); 0 = D has no such
    head."""
    frozen_backbone: str = ""
    """A pretrained network whose frozen features D judges by too: 'timm/NAME' (timm/vit_small_patch14_dinov2.lvd142m)
    or 'open_clip/MODEL/TAG'. It cannot be the network of a score."""
    frozen_size: int = 0
    """Pixels at which a timm backbone sees the images, at least 32; 0 = its own size, at most 224. The time falls
    with the square: small images gain little from being enlarged sevenfold."""
    frozen_width: int = 64
    """Channels inside each head on the backbone's features."""
    frozen_kernel: Literal[1, 3] = 1
    """Side of the second convolution of each head."""
    frozen_std: bool = True
    """Whether each head sees how much consecutive images differ, as D does with minibatch_std."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        power_of_two = self.resolution > 0 and self.resolution & (self.resolution - 1) == 0
        check(
            power_of_two and 16 <= self.resolution <= 256,
            "resolution",
            self.resolution,
            "16, 32, 64, 128 or 256",
        )
        check(1 <= self.base_ch <= 1024, "base_ch", self.base_ch, "from 1 to 1024")
        check(1 <= self.z_dim <= 65536, "z_dim", self.z_dim, "from 1 to 65536")
        check(1 <= self.cond_dim <= 65536, "cond_dim", self.cond_dim, "from 1 to 65536")
        most = int(math.log2(self.resolution)) - 2  # the smallest input is 8x8
        fewest = 0 if self.frozen_backbone else 1
        check(
            fewest <= self.d_scales <= most,
            "d_scales",
            self.d_scales,
            f"from {fewest} to {most} at resolution {self.resolution}",
        )
        sides = [str(4 * 2**i) for i in range(most)]
        check(
            all(side in sides for side in named_in(self.attention)),
            "attention",
            self.attention,
            f"sides out of {', '.join(sides)}, joined by commas, at resolution {self.resolution}",
        )
        check(0 < self.residual_scale <= 1, "residual_scale", self.residual_scale, "above 0 and at most 1")
        check(
            1 <= self.d_projections <= most,
            "d_projections",
            self.d_projections,
            f"from 1 to {most} at resolution {self.resolution}",
        )
        check(0 <= self.match_width <= 4096, "match_width", self.match_width, "from 1 to 4096, or 0")
        check(self.std_group in (2, 4), "std_group", self.std_group, "2 or 4")
        check(0 <= self.d_base_ch <= 1024, "d_base_ch", self.d_base_ch, "from 1 to 1024, or 0")
        self._check_backbone()

    @property
    def attention_sides(self) -> tuple[int, ...]:
        return tuple(int(side) for side in named_in(self.attention))

    def _check_backbone(self) -> None:
        name = self.frozen_backbone
        known = not name or re.fullmatch(r"timm/[\w.-]+|open_clip/[\w.-]+/[\w.-]+", name)
        check(bool(known), "frozen_backbone", name, "'timm/NAME' or 'open_clip/MODEL/TAG'")
        size = self.frozen_size
        check(size == 0 or 32 <= size <= 1024, "frozen_size", size, "0 or from 32 to 1024")
        if size and name.startswith("open_clip/"):
            raise UserError(f"frozen_size {size} with {name}: open_clip's networks take their own size; leave it out")
        check(1 <= self.frozen_width <= 1024, "frozen_width", self.frozen_width, "from 1 to 1024")
        check(self.frozen_kernel in (1, 3), "frozen_kernel", self.frozen_kernel, "1 or 3")
        if "inception_v3" in name:
            raise UserError(
                f"frozen_backbone {name}: a G trained against Inception's features has a low FID whatever it draws, "
                "and FID is reported; choose another backbone"
            )

    def architecture(self) -> "ModelConfig":
        """The network part alone, of a larger config too."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in fields(ModelConfig)})


def as_made(options: dict) -> dict:
    """Recorded options of an architecture, with those that did not exist then as what the networks were."""
    heads = EARLIER_HEADS if options.get("frozen_backbone") else {}
    return {**EARLIER, **heads, **options}
