"""Pretrained image networks whose features a discriminator judges by: from timm or open_clip, frozen."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.encoders.open_clip_encoder import check_obtainable, load_open_clip
from toolkit.errors import UserError, nearest
from toolkit.networks.norm_folding import fold_batch_norms
from toolkit.networks.packaged_backbone import packaged_tensors
from toolkit.networks.weights_file import read_tensors, tensors_sha256

DEPTHS = 4
"""Most depths of the backbone that have a head."""
LARGEST = 224
"""Pixels: a backbone made for more (DINOv2: 518) sees this many where it can, as in evaluation."""

Network = TypeVar("Network", bound=nn.Module)


class Tower(NamedTuple):
    """An image network by its library, and what it expects of images."""

    network: nn.Module
    """timm's or open_clip's, with `forward_intermediates`, of which nn.Module as a type knows nothing: hence Any below
    where it is called."""
    side: int
    """Pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of RGB in [0, 1]."""


class ImageInput(nn.Module):
    """[-1, 1] -> what a pretrained network expects: its size, antialiased bilinear, and its mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, side: int, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, R, R] -> [N, 3, side, side]."""
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std


class FrozenBackbone(nn.Module):
    """Maps of up to DEPTHS blocks of a pretrained network, evenly spread up to the last. Never trained."""

    def __init__(self, name: str, tower: Tower, indices: list[int], channels: list[int], sha256: str = "") -> None:
        super().__init__()
        self.name, self.indices, self.channels = name, indices, channels
        self.sha256 = sha256
        """Of the weights as the library loads them; '' without weights."""
        self.network = tower.network
        self.input = ImageInput(*tower[1:])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, 3, R, R] in [-1, 1] -> [N, C, h, w] of each depth; a ViT's tokens as a map, without its class token."""
        return _intermediates(self.network, self.input(images), self.indices)


def load_backbone(name: str, weights: Path | None = None, size: int = 0) -> FrozenBackbone:
    """`name`: 'timm/NAME', 'timm/NAME.TAG' or 'open_clip/MODEL/TAG'. `weights`: a local copy of that library's file,
    .safetensors, or .pth of nothing but tensors; None: the library's download. `size`: pixels a timm network sees
    images at; 0: its own.

    Raises UserError for unknown names and when nothing can be loaded. On the CPU.
    """
    blank = weightless_backbone(name, size)
    if weights is not None and not weights.is_file():
        raise UserError(f"frozen weights {weights}: no such file; correct --frozen_weights")
    library, _, model = name.partition("/")
    sha256, tower = _load_timm(model, weights, size) if library == "timm" else _load_open_clip(model, weights)
    return FrozenBackbone(name, tower, blank.indices, blank.channels, sha256)


def weightless_backbone(name: str, size: int = 0) -> FrozenBackbone:
    """The same on the meta device: sizes without a download and without memory. Raises UserError for unknown names."""
    library, _, model = name.partition("/")
    with torch.device("meta"):
        tower = _blank_timm(model, size) if library == "timm" else _blank_open_clip(model)
        try:
            found = _intermediates(tower.network.eval(), torch.zeros(1, 3, tower.side, tower.side), None)
        except (AttributeError, NotImplementedError) as error:
            raise UserError(f"{name} gives no features of its blocks ({error}); choose another backbone") from None
        except (AssertionError, ValueError, RuntimeError) as error:  # patches or windows that do not fit
            raise UserError(f"{name} takes no images of {tower.side} pixels ({error}); change --frozen_size") from None
        indices = spread(len(found))
        return FrozenBackbone(name, tower, indices, [found[index].shape[1] for index in indices])


def materialised(network: Network) -> Network:
    """A network of the meta device, its tensors replaced in place by zeros of the present device or fake mode."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                zeros = torch.zeros(weight.shape, dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return network


def spread(count: int) -> list[int]:
    """Up to DEPTHS of `count` blocks, evenly spread and with the last: of 12 blocks 2, 5, 8, 11; of 5 stages 1 to 4."""
    return sorted({-(-(i + 1) * count // DEPTHS) - 1 for i in range(DEPTHS)})


def _intermediates(network: Any, images: Tensor, indices: list[int] | None) -> list[Tensor]:
    found = network.forward_intermediates(images, indices=indices, stop_early=True, intermediates_only=True)
    return found["image_intermediates"] if isinstance(found, dict) else found  # open_clip's towers give a dict


def _blank_timm(model: str, size: int) -> Tower:
    import timm  # seconds of import that a run without a backbone should not pay

    base, _, tag = model.partition(".")
    known = timm.list_models()
    if base not in known:
        raise UserError(f"unknown timm model '{base}'{nearest(base, known)} (frozen_backbone 'timm/{model}')")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm knows no weights '{tag}' of {base}{nearest(tag, tags)}; there are {', '.join(tags)}")
    network = timm.create_model(model, pretrained=False, num_classes=0)
    fold_batch_norms(network)  # as the loaded one is: the memory estimate counts what it saves
    return _timm_tower(network, size)


def _load_timm(model: str, weights: Path | None, size: int) -> tuple[str, Tower]:
    """SHA-256 of the weights, and the tower."""
    import timm

    try:
        tensors = _state_dict(read_tensors(weights)) if weights is not None else _packaged_if_offline(model)
        names = None if tensors is None else set(tensors)
        overlay = None if tensors is None else {"state_dict": tensors}
        network: Any = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        missing = [] if names is None else [name for name in network.state_dict() if name not in names]
        if missing:  # timm leaves them at random without a word
            raise ValueError(f"{weights} lacks {len(missing)} of its tensors, such as {missing[0]}")
    except Exception as error:  # hub, network, file and shape errors have no common base
        raise _not_loaded(f"timm/{model}", error) from None
    network.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    sha256 = tensors_sha256(network.state_dict())
    fold_batch_norms(network)
    return sha256, _timm_tower(network, size)


def _packaged_if_offline(model: str) -> dict[str, Tensor] | None:
    """The weights of an installed package where the hub cannot be reached; None where timm is to download them.

    Raises OSError if there is neither, UserError for a changed package.
    """
    import timm

    config = timm.get_pretrained_cfg(model)
    if not config or not config.hf_hub_id:
        return None
    try:
        check_obtainable(config.hf_hub_id, ("model.safetensors", "pytorch_model.bin"))
    except OSError:
        if (tensors := packaged_tensors(model)) is None:
            raise
        if os.environ.get("RANK", "0") == "0":  # once, not by every process
            print(f"timm/{model}: no hub can be reached; the weights are the installed package's", file=sys.stderr)
        return tensors
    return None


def _timm_tower(network: Any, size: int) -> Tower:
    import timm

    config = timm.data.resolve_model_data_config(network)
    own = config["input_size"][-1]
    adapts = hasattr(network, "set_input_size")  # a ViT's positions are interpolated; most convolutions take any size
    takes_any = adapts or not network.pretrained_cfg.get("fixed_input_size")
    if size and size != own and not takes_any:
        raise UserError(f"this backbone takes {own} pixels only; leave --frozen_size out")
    side = (size or min(own, LARGEST)) if takes_any else own
    if adapts and side != own:
        network.set_input_size((side, side))
    return Tower(network, side, tuple(config["mean"]), tuple(config["std"]))


def _blank_open_clip(model: str) -> Tower:
    import open_clip

    architecture, known = model.partition("/")[0], open_clip.list_models()
    if architecture not in known:
        raise UserError(
            f"unknown CLIP architecture '{architecture}'{nearest(architecture, known)} (frozen_backbone "
            f"'open_clip/{model}')"
        )
    with _quiet():  # it warns that there are no weights
        return open_clip_tower(open_clip.create_model(architecture, pretrained=None, device="meta"))


def _load_open_clip(model: str, weights: Path | None) -> tuple[str, Tower]:
    try:
        clip = load_open_clip(model, weights).model
    except UserError as error:  # it names the option of the commands that embed captions
        message = str(error).replace("--encoder_weights", "--frozen_weights")
        raise UserError(message.replace("encoder weights", "frozen weights")) from None
    return tensors_sha256(clip.visual.state_dict()), open_clip_tower(clip)


def open_clip_tower(clip: Any) -> Tower:
    """The image's half; mean and deviation belong to the tag, not to the architecture."""
    from open_clip import get_model_preprocess_cfg

    config = get_model_preprocess_cfg(clip)
    side = config["size"] if isinstance(config["size"], int) else config["size"][0]
    return Tower(clip.visual, side, tuple(config["mean"]), tuple(config["std"]))


def _state_dict(found: dict) -> dict[str, Tensor]:
    """Of a file that has it beside other things."""
    inner = found.get("state_dict", found.get("model", found))
    if not isinstance(inner, dict) or not all(torch.is_tensor(value) for value in inner.values()):
        raise ValueError("it holds no state dict")
    return dict(inner)


def _not_loaded(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"cannot load {name}: {reason}. Without network pass a local file (--frozen_weights FILE)")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
