"""Images of any size as Inception's input, under the three conventions that published FIDs are computed with.

'legacy': TensorFlow 1's bilinear without antialias, half a pixel off, as in the original FID and torch-fidelity.
'clean': bicubic with antialias on float32, as in clean-fid (Parmar et al. 2022, arXiv:2104.11222).
'pytorch': PyTorch's bilinear without antialias, as in pytorch-fid. Only its numbers compare with each other.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Resize = Literal["legacy", "clean", "pytorch"]
SIDE = 299
NAMES = {
    "legacy": "tf1-bilinear-299 (torch-fidelity)",
    "clean": "pil-bicubic-antialias-299 (clean-fid)",
    "pytorch": "bilinear-299 (pytorch-fid)",
}
VERSION = 1
"""Part of the key of stored features: raise it with every change that moves a pixel."""


def network_input(images: Tensor, resize: Resize) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 299, 299] in about [-1, 1], on the same device.

    The ranges differ too: pytorch-fid maps 0..255 to -1..1, the others (like TensorFlow's graph) to -1..127/128.
    """
    pixels = resized(images, resize)
    return pixels.div_(127.5).sub_(1) if resize == "pytorch" else pixels.sub_(128).div_(128)


def resized(images: Tensor, resize: Resize) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 299, 299] in [0, 255]; images of 299 x 299 keep their pixels."""
    if images.shape[2:] == (SIDE, SIDE):
        return images.float()
    if resize == "legacy":
        return _tf1_bilinear(_tf1_bilinear(images.float(), 3), 2)
    if resize == "clean":
        return bicubic(images, (SIDE, SIDE))
    return interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False)


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, *size] in [0, 255]: Pillow's bicubic in its mode F, without its rounding.

    In float64, where PyTorch's antialiased bicubic is Pillow's to the last bit of float32; in float32 it is off by
    0.004 of 255.
    """
    return interpolate(images.double(), size, mode="bicubic", antialias=True).clamp_(0, 255).float()


def _tf1_bilinear(pixels: Tensor, dimension: int) -> Tensor:
    """One dimension of float32 [B, 3, H, W] to 299.

    Output pixel i lies at input i * size / 299 with no half pixel (TensorFlow 1's resize_bilinear without
    align_corners). First columns, then rows, in this order of operations: bit for bit torch-fidelity's, which gathers
    four images of the output's size where two of half of it do.
    """
    size = pixels.shape[dimension]
    position = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(size / SIDE, dtype=torch.float32)
    low = position.long()
    shape = [SIDE if i == dimension else 1 for i in range(4)]
    share = (position - low).view(shape).to(pixels.device)
    before = pixels.index_select(dimension, low.to(pixels.device))
    after = pixels.index_select(dimension, (low + 1).clamp_max(size - 1).to(pixels.device))
    return after.sub_(before).mul_(share).add_(before)
