"""Files of weights that users bring, read without unpickling anything but tensors, and a fingerprint of weights."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or from what torch.save wrote, on the CPU. Errors are those of the libraries."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over name, shape, type and bytes of each, in the order of their names: the same for file and download."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
