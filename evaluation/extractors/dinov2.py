"""Features of DINOv2 through timm: blind to textures that fool Inception, trained on no labels.

Stein et al. 2023 (arXiv:2306.04675) compare generators by DINOv2 ViT-L/14 on images of 224 px; so does this. timm
resizes the position embeddings with antialias and torch.hub's model without, so a value compares with others of this
toolkit, not to the digit with theirs.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.extractors.extractor import exact_float32, parameters_sha256
from evaluation.extractors.resize import VERSION, bicubic
from toolkit.errors import UserError, nearest

DEFAULT_MODEL = "vit_large_patch14_dinov2.lvd142m"
SIDE = 224


@dataclass(frozen=True)
class Dinov2Extractor:
    """An evaluation.extractors.extractor.Extractor. Tap: 'dinov2'."""

    network: nn.Module
    model: str
    weights: Path | None
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    device: torch.device
    taps = ("dinov2",)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] in [0, 255] -> 'dinov2': float32 [B, C] on the CPU, the normalised class token."""
        mean, deviation = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.mean, self.deviation))
        with exact_float32(self.device):
            pixels = bicubic(images.to(self.device), (SIDE, SIDE)).div_(255)
            return {"dinov2": self.network(pixels.sub_(mean).div_(deviation)).float().cpu()}

    def protocol(self) -> dict:
        """What a reader must know to compare numbers."""
        return {
            "model": self.model,
            "resize": f"pil-bicubic-antialias-{SIDE}",
            "dinov2_weights": str(self.weights) if self.weights else None,
            "parameters_sha256": self._sha256,
            "device": str(self.device),
            "torch": torch.__version__,
            "timm": version("timm"),
        }

    def key(self) -> str:
        """Mean and deviation belong to the model's name."""
        return f"dinov2 {self.model} {SIDE} {VERSION} {self._sha256} float32 {self.device.type}"

    @cached_property
    def _sha256(self) -> str:
        return parameters_sha256(self.network)


def load_dinov2(model: str, weights: Path | None, device: torch.device) -> Dinov2Extractor:
    """`model`: timm's name of a DINOv2 with the tag of its weights. `weights`: a local copy of timm's
    model.safetensors; None: timm's download.

    Raises UserError for unknown names and when nothing can be loaded.
    """
    import timm  # seconds of import

    known = [name for name in timm.list_pretrained() + timm.list_models() if "dinov2" in name]
    if model not in known:
        raise UserError(f"unknown DINOv2 model '{model}'{nearest(model, known)} (default {DEFAULT_MODEL})")
    if weights:
        _check_file(weights)
    try:
        network = timm.create_model(
            model,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(weights)} if weights else None,
            num_classes=0,
            img_size=SIDE,
        )
    except Exception as error:  # hub, network, file and shape errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot load {model}: {reason}. Without network pass a local model.safetensors (--dinov2_weights FILE)"
        ) from None
    config = timm.data.resolve_model_data_config(network)
    network = network.eval().requires_grad_(False).to(device)
    return Dinov2Extractor(network, model, weights, tuple(config["mean"]), tuple(config["std"]), device)


def _check_file(weights: Path) -> None:
    """Only safetensors: what other files hold would be unpickled by whatever timm does with them."""
    if not weights.is_file():
        raise UserError(f"DINOv2 weights {weights}: no such file")
    if weights.suffix != ".safetensors":
        raise UserError(f"DINOv2 weights {weights} refused: only timm's model.safetensors is read")
