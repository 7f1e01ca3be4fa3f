"""CLIP by open_clip name for scoring: images as features, and captions beside them."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from evaluation.extractors.extractor import exact_float32, parameters_sha256
from toolkit.data.images import to_pil
from toolkit.encoders.open_clip_encoder import OpenClip, OpenClipEncoder, load_open_clip
from toolkit.encoders.text_encoder import SAME_ENCODER_COSINE, EncoderIdentity
from toolkit.errors import UserError


@dataclass(frozen=True)
class ClipExtractor:
    """An evaluation.extractors.extractor.Extractor. Tap: 'clip'."""

    clip: OpenClip
    model: str
    pretrained: str
    weights: Path | None
    device: torch.device
    taps = ("clip",)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] in [0, 255] -> 'clip': float32 [B, E] on the CPU, unit length.

        Images are prepared by the transform that belongs to these very weights.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow resizes outside the interpreter lock
            inputs = torch.stack(list(pool.map(self._prepare, images)))
        with exact_float32(self.device):
            vectors = self.clip.model.encode_image(inputs.to(self.device))
            return {"clip": normalize(vectors.float(), dim=1).cpu()}

    def encode_texts(self, captions: list[str]) -> Tensor:
        """N captions -> float32 [N, E] on the CPU, unit length, of the same space."""
        with exact_float32(self.device):
            return encode_texts(self.clip, captions, self.device)

    def is_encoder(self, identity: EncoderIdentity) -> bool:
        """Does it give a recorded encoder's vectors? By vectors, not by name: the same weights have several names."""
        recorded, found = identity.vectors(), self.encode_texts(list(identity.probe_captions))
        return found.shape == recorded.shape and bool(cosine_similarity(found, recorded).min() >= SAME_ENCODER_COSINE)

    def protocol(self) -> dict:
        """What a reader must know to compare numbers."""
        return {
            "model": self.model,
            "pretrained": self.pretrained,
            "clip_weights": str(self.weights) if self.weights else None,
            "parameters_sha256": self._sha256,
            "device": str(self.device),
            "torch": torch.__version__,
            "open_clip": version("open_clip_torch"),
        }

    def key(self) -> str:
        """With what the transform is made of: size, crop, filter, mean, deviation."""
        from open_clip import get_model_preprocess_cfg

        transform = json.dumps(get_model_preprocess_cfg(self.clip.model), sort_keys=True)
        return f"clip {self.model} {self._sha256} {transform} float32 {self.device.type}"

    def _prepare(self, image: Tensor) -> Tensor:
        return self.clip.preprocess(to_pil(image))

    @cached_property
    def _sha256(self) -> str:
        return parameters_sha256(self.clip.model)


def load_clip(model: str, pretrained: str, weights: Path | None, device: torch.device) -> ClipExtractor:
    """`model`, `pretrained`: open_clip's names. `weights`: a local copy of the tag's file; None: its download.

    Raises UserError for unknown names and when nothing can be loaded.
    """
    try:
        clip = load_open_clip(f"{model}/{pretrained}", weights, device)
    except UserError as error:  # it names the option of the commands that condition on CLIP
        message = str(error).replace("--encoder_weights", "--clip_weights")
        raise UserError(message.replace("encoder weights", "CLIP weights")) from None
    return ClipExtractor(clip, model, pretrained, weights, device)


def encode_texts(clip: OpenClip, captions: list[str], device: torch.device) -> Tensor:
    """N captions -> float32 [N, E] on the CPU, unit length; equal ones are computed once, none longer than it is."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    vectors = OpenClipEncoder("", clip, device).encode(list(number))
    return vectors[[number[caption] for caption in captions]]
