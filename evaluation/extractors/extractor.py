"""What every extractor offers, and the arithmetic that all of them compute with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.networks.weights_file import tensors_sha256


class Extractor(Protocol):
    """Images in, features out; one forward for all taps."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the features: 'inception_64', ..., 'inception_logits', 'clip', 'dinov2'."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] in [0, 255] on the CPU -> float32 [B, C] on the CPU for each tap."""

    def protocol(self) -> dict:
        """What a reader must know to compare numbers: model, layers, resize, weights, device, versions."""

    def key(self) -> str:
        """Everything that the features depend on but the images; equal keys may share stored features."""


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no TF32 and no algorithms chosen by timing.

    Training may have switched them on; they move features by more than the precision that is reported.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with exact, torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def parameters_sha256(network: nn.Module) -> str:
    """SHA-256 over name, shape, type and bytes of each parameter and buffer: the same for a file and for a download."""
    return tensors_sha256(network.state_dict())
