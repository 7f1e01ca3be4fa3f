"""Inception weights files for tests: complete random ones, and the real ones up to layer 768 where they are."""

import io
import runpy
from pathlib import Path

import torch


def write_random(path: Path) -> Path:
    """A complete file of random weights: says nothing about images, everything about plumbing."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=empty)
    for module in network.modules():  # so that images differ in every layer and every batch norm does something
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.8, 1.2)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_(0, 0.1)
    torch.nn.init.normal_(network.fc.weight, std=0.3)
    torch.nn.init.normal_(network.fc.bias)
    torch.save(network.state_dict(), path)
    return path


def write_partial(real_data: Path, path: Path) -> Path:
    """The real Inception up to layer 768, zeros behind it."""
    script = runpy.run_path(str(real_data / "weights" / "make_inception_pth.py"))
    torch.save(script["state_dict"](), path)
    return path


def drawn_images(count: int, size: tuple[int, int] = (40, 40), seed: int = 0) -> torch.Tensor:
    """uint8 [N, 3, H, W]: coloured clouds with clipped blacks and whites."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 400 - 70
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return fine.clamp(0, 255).round().to(torch.uint8)
