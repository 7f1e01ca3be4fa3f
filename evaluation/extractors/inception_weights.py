"""The Inception weights file: fetched once, read without running anything in it, refused if it ends early."""

import hashlib
import io
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from toolkit.errors import UserError

BLOCKS = {
    "64": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    "192": ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    "768": tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
    "2048": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    "logits": ("fc",),
}
"""The parts of the network that each feature layer adds to those before it."""


def read_weights(path: Path | None, layers: tuple[str, ...]) -> tuple[dict[str, Tensor], str]:
    """The state dict and the file's SHA-256, from one read: what was hashed is what is used.

    None: the file that torch-fidelity downloads. Raises UserError if there is none, if it holds anything but tensors,
    and if it ends before one of `layers` (keys of BLOCKS).
    """
    path = path or _download()
    try:
        data = path.read_bytes()
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Inception weights {path} cannot be read ({error.strerror})") from None
    except Exception as error:  # UnpicklingError for code, RuntimeError and others for no torch file at all
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"Inception weights {path} refused: not a file of tensors only ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"Inception weights {path} refused: no state dict")
    for layer in BLOCKS:
        if layer in layers:
            _check_reaches(state, layer, path)
    return state, hashlib.sha256(data).hexdigest()


def _check_reaches(state: dict[str, Tensor], layer: str, path: Path) -> None:
    """Partial files fill what they lack with zeros; features from there on are constant and would score as perfect."""
    layers = list(BLOCKS)
    for earlier in layers[: layers.index(layer) + 1]:
        for name, values in state.items():
            needed = name.split(".")[0] in BLOCKS[earlier] and name.endswith(("conv.weight", "fc.weight"))
            if needed and not (values.any() and values.isfinite().all()):
                raise UserError(
                    f"{path}: these weights end before layer {layer} ({name} is all zero or not finite); "
                    "pass a complete file, or for FID an earlier --feature_layer"
                )


def _download() -> Path:
    """torch-fidelity's own file in torch's hub cache, fetched there once."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(URL_INCEPTION_V3).path).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path))
        except OSError as error:  # URLError, HTTPError and timeouts are OSErrors too
            raise UserError(
                f"no Inception weights: the download failed ({error}); get {URL_INCEPTION_V3} and pass --weights FILE"
            ) from None
    return path
