"""Features of the FID Inception network, equal to torch-fidelity's, of every layer that is asked for in one forward."""

import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.extractors.extractor import exact_float32
from evaluation.extractors.inception_weights import BLOCKS, read_weights
from evaluation.extractors.resize import NAMES, VERSION, Resize, network_input
from toolkit.errors import UserError, check


@dataclass(frozen=True)
class InceptionExtractor:
    """An evaluation.extractors.extractor.Extractor. Taps: 'inception_64', _192, _768, _2048 and 'inception_logits'."""

    network: nn.Module
    layers: tuple[str, ...]
    """Keys of BLOCKS in the order of the network."""
    resize: Resize
    device: torch.device
    weights_sha256: str

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(f"inception_{layer}" for layer in self.layers)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] in [0, 255] -> float32 [B, 64 | 192 | 768 | 2048 | 1008] on the CPU for each tap.

        Layers before 2048 are averaged over their positions; the logits come without the last layer's bias.
        """
        with exact_float32(self.device):
            found = self._forward(network_input(images.to(self.device), self.resize))
            return {f"inception_{layer}": found[layer].cpu() for layer in self.layers}

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for layer, blocks in BLOCKS.items():
            if layer == "logits":
                found[layer] = found["2048"] @ self.network.get_parameter("fc.weight").T
                break
            for name in blocks:
                x = self.network.get_submodule(name)(x)
            found[layer] = x.mean(dim=(2, 3))
            if layer == self.layers[-1]:
                break
        return found

    def protocol(self) -> dict:
        """What a reader must know to compare numbers."""
        return {
            "feature_layers": list(self.layers),
            "resize": NAMES[self.resize],
            "weights_sha256": self.weights_sha256,
            "device": str(self.device),
            "torch": torch.__version__,
            "torch_fidelity": version("torch-fidelity"),
        }

    def key(self) -> str:
        """With the kind of device: rounding differs."""
        layers = " ".join(self.layers)
        return f"inception {layers} {self.resize} {VERSION} {self.weights_sha256} float32 {self.device.type}"


def load_inception(
    layers: tuple[str, ...], resize: Resize, weights: Path | None, device: torch.device
) -> InceptionExtractor:
    """`layers`: keys of BLOCKS. `weights`: a torch-fidelity Inception .pth; None: the one torch-fidelity downloads.

    Raises UserError if there are no weights, if the file holds anything but tensors, and if it ends before a layer.
    """
    check(bool(layers) and set(layers) <= BLOCKS.keys(), "feature layers", layers, f"some of {', '.join(BLOCKS)}")
    check(resize in NAMES, "resize", resize, f"one of {', '.join(NAMES)}")
    state, sha256 = read_weights(weights, layers)
    network = _faster(_build(state, str(weights or "the downloaded file")), device)
    return InceptionExtractor(network, tuple(layer for layer in BLOCKS if layer in layers), resize, device, sha256)


def _build(state: dict[str, Tensor], name: str) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # seconds of import

    safe = io.BytesIO()  # torch-fidelity unpickles whatever it is given, so it is given a file of our own making
    torch.save(state, safe)
    safe.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=safe)
    except RuntimeError as error:
        raise UserError(f"{name} is no torch-fidelity Inception: {str(error).splitlines()[-1].strip()[:200]}") from None


def _faster(network: nn.Module, device: torch.device) -> nn.Module:
    """Batch norms folded into the convolutions, channels last: twice as fast on a CPU, features equal to 1e-6."""
    for block in list(network.modules()):
        conv, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()
    memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    return network.to(device).to(memory_format=memory_format)
