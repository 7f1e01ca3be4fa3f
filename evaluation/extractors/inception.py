"""Features of the FID Inception network, as torch-fidelity computes them, from weights that are checked first."""

import hashlib
import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from evaluation.sources import Source
from toolkit.errors import UserError

RESIZE = "tf1-bilinear-299 (torch-fidelity)"
BLOCKS = {
    "64": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    "192": ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    "768": tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
    "2048": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    "logits_unbiased": ("fc",),
}
"""The parts of the network that each feature layer adds to those before it."""


@dataclass(frozen=True)
class Extractor:
    """Inception up to one layer, on its device."""

    network: nn.Module
    layer: str
    device: torch.device
    weights_sha256: str

    def protocol(self) -> dict:
        """What a reader must know to compare numbers."""
        return {
            "feature_layer": self.layer,
            "resize": RESIZE,
            "weights_sha256": self.weights_sha256,
            "device": str(self.device),
            "torch": torch.__version__,
            "torch_fidelity": version("torch-fidelity"),
        }


def load_extractor(layer: str, weights: Path | None, device: torch.device) -> Extractor:
    """`layer`: a key of BLOCKS. `weights`: a torch-fidelity Inception .pth; None: the one torch-fidelity downloads.

    Raises UserError if there are no weights, if the file holds anything but tensors, and if it ends before `layer`.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # seconds of import

    path = weights or _download()
    state, sha256 = _read_tensors(path)
    _check_reaches(state, layer, path)
    safe = io.BytesIO()  # torch-fidelity unpickles whatever it is given, so it is given a file of our own making
    torch.save(state, safe)
    safe.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception-v3", [layer], feature_extractor_weights_path=safe)
    except RuntimeError as error:
        raise UserError(f"{path} is no torch-fidelity Inception: {str(error).splitlines()[-1].strip()[:200]}") from None
    return Extractor(_faster(network, device), layer, device, sha256)


@torch.no_grad()
def features(source: Source, extractor: Extractor, batch: int) -> Tensor:
    """Every picture of `source`, in its order -> float64 [N, C] on the CPU. Progress on stderr."""
    chunks = []
    # TF32 and autotuned algorithms move the features by more than the precision that is reported.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact, tqdm(total=source.count, desc=Path(source.name).name, unit=" pictures") as progress:
        for pictures in source.batches(batch):
            chunks.append(extractor.network(pictures.to(extractor.device))[0].cpu().double())
            progress.update(len(pictures))
    return torch.cat(chunks)


def _faster(network: nn.Module, device: torch.device) -> nn.Module:
    """Batch norms folded into the convolutions, channels last: twice as fast on a CPU, features equal to 1e-6."""
    for block in list(network.modules()):
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    return network.to(device, memory_format=memory_format)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict and the file's SHA-256, from one read: what was hashed is what is used."""
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
