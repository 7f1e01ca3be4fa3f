"""Options of what both networks minimise, and of the pretrained networks that take part in it."""

from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check


@dataclass(frozen=True)
class LossOptions:
    """Losses"""

    loss: Literal["hinge", "nonsaturating", "relativistic"] = "relativistic"
    """Adversarial loss of both networks; 'relativistic' pairs each real image with a generated one."""
    fresh_for_g: bool = True
    """Whether G's phase has real images of its own where its loss looks at some: those that D was just trained on are
    rated too well."""
    lecam: float = 0.0
    """Weight of LeCam regularisation in D's loss, which holds its logits near their running means; 0 = off."""
    feature_matching: float = 0.0
    """Weight in G's loss of the distance between mean D features of real and generated images; 0 = off."""
    perceptual: float = 0.0
    """Weight in G's loss of the VGG-16 feature distance to the real image of the same caption; 0 = off."""
    perceptual_weights: str | None = None
    """Local torchvision VGG-16 state dict (.pth or .safetensors); by default torchvision downloads it."""
    clip_guidance: float = 0.0
    """Weight in G's loss of the squared angle between image and caption in the space of the CLIP that embedded the
    captions; 0 = off."""
    clip_guidance_weights: str | None = None
    """Local copy of that CLIP's weights; by default open_clip downloads them."""
    frozen_weight: float | Literal["even"] = 0.5
    """Weight of the mean over the frozen backbone's heads in all losses of logits, against the mean over d_scales of
    D's own; 'even' counts each head as much as each scale. Without own scales the heads are all."""
    frozen_r1: float = 10.0
    """Weight of R1 of these heads with respect to the normalised features that they see, on real and on generated
    images. Every r1_interval steps, and not multiplied by as much; 0 = off."""
    frozen_weights: str | None = None
    """Local file of frozen_backbone (timm's or open_clip's .safetensors or .pth); by default its library downloads
    it."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        weight = self.frozen_weight
        check(weight == "even" or 0 < weight < 1, "frozen_weight", weight, "above 0 and below 1, or 'even'")
        for name in ("lecam", "feature_matching", "perceptual", "clip_guidance", "frozen_r1"):
            check(0 <= getattr(self, name) < 1e9, name, getattr(self, name), "a finite number of at least 0")
