"""Which device a command runs on."""

import torch

from toolkit.errors import UserError


def pick_device(name: str) -> torch.device:
    """'auto' (CUDA where there is one, else CPU) or a torch device name. Raises UserError if it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device '{name}' cannot be used ({str(error).splitlines()[0]})") from None
    return device
