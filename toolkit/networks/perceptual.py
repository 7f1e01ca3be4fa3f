"""Perceptual distance of VGG-16 features (Johnson et al. 2016, arXiv 1603.08155), an option of G's loss."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.networks.weights_file import read_tensors

LAYERS = (8, 15, 22)
"""relu2_2, relu3_3, relu4_3 in torchvision's `vgg16().features`."""


class PerceptualDistance(nn.Module):
    """Mean L1 distance of frozen VGG-16 features, averaged over three layers."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        import torchvision  # a second of import that runs without this loss should not pay

        try:
            if weights is None:
                network = torchvision.models.vgg16(weights="IMAGENET1K_V1")
            else:
                network = torchvision.models.vgg16(init_weights=False)
                network.features.load_state_dict(_read_features(weights))
        except Exception as error:  # download, file and shape errors have no common base
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot load VGG-16 ({reason}); pass a local file with --perceptual_weights") from None
        self.features = network.features[: LAYERS[-1] + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """fake, real [N, 3, R, R] in [-1, 1] -> [N]."""
        x, y = (((images.float() + 1) / 2 - self.mean) / self.std for images in (fake, real))
        distance = torch.zeros(len(fake), device=fake.device)
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in LAYERS:
                distance = distance + F.l1_loss(x, y, reduction="none").mean(dim=(1, 2, 3)) / len(LAYERS)
        return distance


def _read_features(path: Path) -> dict[str, Tensor]:
    """The convolutional part of a torchvision VGG-16 state dict; the classifier may be absent."""
    return {name[9:]: value for name, value in read_tensors(path).items() if name.startswith("features.")}
