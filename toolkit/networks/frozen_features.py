"""A discriminator on the features of a frozen, pretrained network: small trained heads on maps of several depths.

Projected GAN (Sauer et al. 2021, arXiv 2111.01007), Vision-aided GAN (Kumari et al. 2022, arXiv 2112.09130),
StyleGAN-T (Sauer et al. 2023, arXiv 2301.09515, sect. 4.2: ViT tokens of equally spaced layers, spectral-norm heads,
projection conditioning on the text).
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.encoders.open_clip_encoder import check_obtainable, load_open_clip
from toolkit.errors import UserError, nearest
from toolkit.networks.architecture import ModelConfig
from toolkit.networks.layers import RELU_GAIN, TEXT_WIDTH, with_minibatch_std
from toolkit.networks.spectral_norm import SpectralConv2d, SpectralLinear
from toolkit.networks.weights_file import read_tensors, tensors_sha256

DEPTHS = 4
"""Most depths of the backbone that have a head."""
LARGEST = 224
"""Pixels: a backbone made for more (DINOv2: 518) sees this many where it can, as in evaluation."""
POOLED = 8.0
"""What a head's mean over positions counts, so that its first logits of photos spread as ScaleDiscriminator's do
(standard deviation about 1; measured on three timm networks of random weights)."""

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


class FrozenHead(nn.Module):
    """Real and fitting its caption? By one map, with projection conditioning as in ScaleDiscriminator."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        width, self.minibatch_std, self.std_group = config.frozen_width, config.frozen_std, config.std_group
        self.narrow = SpectralConv2d(channels, width, 1)
        self.conv = SpectralConv2d(width + self.minibatch_std, width, config.frozen_kernel)
        self.linear = SpectralLinear(width, 1)
        self.text = nn.Sequential(
            SpectralLinear(config.cond_dim, TEXT_WIDTH), nn.SiLU(), SpectralLinear(TEXT_WIDTH, width, bias=False)
        )
        self.text_scale = math.sqrt(config.cond_dim)

    def forward(self, features: Tensor, texts: Tensor, counts: list[int]) -> Tensor:
        """Normalised map [N, C, h, w], texts [K, N, cond_dim] unit length -> logits [K, N]. `counts`: how many images
        belong together."""
        x = RELU_GAIN * F.relu(self.narrow(features))
        seen = with_minibatch_std(x, counts, self.std_group) if self.minibatch_std else x
        x = x + RELU_GAIN * F.relu(self.conv(seen))
        pooled = POOLED * x.mean(dim=(2, 3))
        projection = (self.text(texts * self.text_scale) * pooled).sum(dim=2) / math.sqrt(pooled.shape[1])
        return self.linear(pooled).squeeze(1) + projection


class FrozenDiscriminator(nn.Module):
    """Heads on a backbone that moves with them and is otherwise none of theirs.

    The backbone is held outside of torch's registry: so optimizer, DDP, gradient clipping, `requires_grad_`, `train`
    and checkpoints see the heads alone, without each of them having to know an exception. What registration is needed
    for, moving to the device and to another memory format, is `_apply`.
    """

    def __init__(self, backbone: FrozenBackbone, config: ModelConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList(FrozenHead(channels, config) for channels in backbone.channels)
        self._held = (backbone,)

    @property
    def backbone(self) -> FrozenBackbone:
        return self._held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._held[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, images: Tensor, texts: Tensor, counts: list[int] | None = None, penalised: bool = False
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """images [N, 3, R, R] in [-1, 1], texts [K, N, cond_dim] unit length -> per depth logits [K, N], the maps, and
        if `penalised` R1 of the heads [N]. `counts`: how many images belong together; by default all.

        Each position of a map is normalised over its channels: backbones and depths differ in scale by more than a
        hundred times, and spectral norm would hand that on to the logits.
        """
        maps = [_normalised(found) for found in self._held[0](images)]
        counts = counts or [len(images)]
        if not penalised:
            return self.by_heads(maps, texts, counts), maps, None
        # As with R1 of D itself: in fp32, and from within.
        with torch.autocast(images.device.type, enabled=False):
            # Differentiable by a zero that depends on a weight: torch.compile takes no requires_grad_ inside its graph.
            nothing = 0 * next(self.parameters()).sum()
            maps = [found.detach().to(texts.dtype) + nothing for found in maps]
            logits = self.by_heads(maps, texts, counts)
            return logits, maps, heads_penalty(logits, maps)

    def by_heads(self, maps: list[Tensor], texts: Tensor, counts: list[int]) -> list[Tensor]:
        return [head(found, texts, counts) for head, found in zip(self.heads, maps, strict=True)]


def heads_penalty(logits: list[Tensor], maps: list[Tensor]) -> Tensor:
    """1/2 |d (mean of the heads' logits) / d maps|^2 [N], over all maps together; own captions are the first.

    R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9) in the space of the normalised maps: no second derivative of
    the backbone, which costs as much again and which fused attention lacks.
    """
    whole = torch.stack([found[0] for found in logits]).mean(dim=0).sum()
    gradients = torch.autograd.grad(whole, maps, create_graph=True)
    return torch.stack([found.square().sum(dim=(1, 2, 3)) for found in gradients]).sum(dim=0) / 2


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


def _normalised(found: Tensor) -> Tensor:
    """[N, C, h, w], mean 0 and variance 1 over C."""
    return F.layer_norm(found.permute(0, 2, 3, 1), found.shape[1:2]).permute(0, 3, 1, 2)


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
    return _timm_tower(timm.create_model(model, pretrained=False, num_classes=0), size)


def _load_timm(model: str, weights: Path | None, size: int) -> tuple[str, Tower]:
    """SHA-256 of the weights, and the tower."""
    import timm

    try:
        tensors = None if weights is None else _state_dict(read_tensors(weights))
        names = None if tensors is None else set(tensors)
        overlay = None if tensors is None else {"state_dict": tensors}
        if tensors is None and (config := timm.get_pretrained_cfg(model)) and config.hf_hub_id:
            check_obtainable(config.hf_hub_id, ("model.safetensors", "pytorch_model.bin"))
        network: Any = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        missing = [] if names is None else [name for name in network.state_dict() if name not in names]
        if missing:  # timm leaves them at random without a word
            raise ValueError(f"{weights} lacks {len(missing)} of its tensors, such as {missing[0]}")
    except Exception as error:  # hub, network, file and shape errors have no common base
        raise _not_loaded(f"timm/{model}", error) from None
    network.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    return tensors_sha256(network.state_dict()), _timm_tower(network, size)


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
