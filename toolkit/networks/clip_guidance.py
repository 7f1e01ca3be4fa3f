"""CLIP guidance, an option of G's loss: the image's CLIP vector is to lie near its caption's.

Squared spherical distance of the two (Sauer et al. 2023, StyleGAN-T, arXiv 2301.09515, sect. 4.3; the form is Crowson's
et al. 2022, arXiv 2204.08583).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.encoders.text_encoder import EncoderIdentity, load_encoder_of
from toolkit.errors import UserError
from toolkit.networks.backbones import ImageInput, open_clip_tower


def clip_distance(a: Tensor, b: Tensor) -> Tensor:
    """arccos(a . b)^2 of unit vectors [N, E] each -> [N], in [0, pi^2], fp32.

    The angle is 2 atan2(|a - b|, |a + b|) (Kahan 2006, "How Futile are Mindless Assessments of Roundoff", sect. 12):
    arccos loses half of the digits near 0 and has no gradient there.
    """
    a, b = a.float(), b.float()
    norm = torch.linalg.vector_norm
    return (2 * torch.atan2(norm(a - b, dim=1), norm(a + b, dim=1))).square()


class ClipGuidance(nn.Module):
    """Squared angle between images and the vectors of their captions, by a frozen image tower."""

    def __init__(self, visual: nn.Module, prepare: ImageInput) -> None:
        super().__init__()
        self.visual, self.prepare = visual, prepare
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """images [N, 3, R, R] in [-1, 1], text [N, E] unit length, of the same CLIP -> [N]."""
        return clip_distance(F.normalize(self.visual(self.prepare(images)).float(), dim=1), text)


def load_clip_guidance(identity: EncoderIdentity, weights: Path | None = None) -> ClipGuidance:
    """The image tower of the CLIP that embedded the captions. `weights`: a local copy; None: open_clip's download.

    Raises UserError if `identity` is no CLIP's, if nothing can be loaded, and if what is loaded gives other vectors.
    """
    if identity.name == HashingEncoder.name:
        raise UserError(
            "clip_guidance compares images with captions in CLIP's space, and those of these shards were embedded by "
            "'hashing'; embed them with CLIP (python -m shards.embed --data SHARDS), or pass "
            "--clip_guidance 0"
        )
    try:
        encoder = load_encoder_of(identity, weights)
    except UserError as error:  # it names the option of the commands that embed captions
        message = str(error).replace("--encoder_weights", "--clip_guidance_weights")
        raise UserError(f"clip_guidance: {message.replace('encoder weights', 'CLIP weights')}") from None
    assert isinstance(encoder, OpenClipEncoder)
    tower = open_clip_tower(encoder.model)
    return ClipGuidance(tower.network, ImageInput(*tower[1:]))
