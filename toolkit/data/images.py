"""Tensors of images: the only place that knows the value range. uint8 [0, 255] <-> float [-1, 1], grids, PNG."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toolkit.durable import write_whole


def to_float(images: Tensor) -> Tensor:
    """uint8 [..., H, W] in [0, 255] -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """float [..., H, W] in [-1, 1] -> uint8, clamped and rounded (truncation would darken by half a level)."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def make_grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """uint8 [N, 3, H, W] -> uint8 [3, rows*(H+gap)+gap, columns*(W+gap)+gap], row by row on white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images.cpu()):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        grid[:, top : top + height, left : left + width] = image
    return grid


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> PIL RGB."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """PIL RGB -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def save_png(image: Tensor, path: Path) -> None:
    """Write uint8 [3, H, W] beside `path` and rename: a reader never meets half an image."""
    data = io.BytesIO()
    to_pil(image).save(data, format="PNG")
    write_whole(path, data.getvalue())
