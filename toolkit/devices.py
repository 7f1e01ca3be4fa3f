"""Which device a command runs on."""

import os

import torch

from toolkit.errors import UserError


def pick_device(name: str) -> torch.device:
    """'auto' (CUDA where there is one, else CPU) or a torch device name. Raises UserError if it cannot be used.

    Of several processes on a machine (torchrun, accelerate launch) 'auto' gives each another GPU.
    """
    try:
        device = torch.device(_own() if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device '{name}' cannot be used ({str(error).splitlines()[0]})") from None
    return device


def _own() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    local = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{int(local) % torch.cuda.device_count()}" if local.isdecimal() else "cuda"
