"""CLIP by open_clip name: the text tower as an encoder, and the whole model for the CLIP score."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from toolkit.encoders.text_tower import TextTower
from toolkit.errors import UserError, nearest

SORTED_AT_ONCE = 16384
"""Captions sorted by length together: 10 MB of token numbers, however many are given."""

FEW = 4
"""Captions that are computed with all columns: so an encoder's fingerprint, of three, keeps every byte that shards and
checkpoints recorded; cut to their length, rounding would move some by the last of their 16 bits."""

GPU_TOKENS, CPU_TOKENS = 16384, 640
"""A batch's rows times columns. A CPU is twice as fast while a batch's activations fit its cache (measured on
ViT-B-32: 640 tokens 1.0, 2,500 tokens 1.25, 10,000 tokens 2.0 times the time)."""


class OpenClip(NamedTuple):
    """A loaded model with the transform and tokenizer that belong to these very weights."""

    model: Any
    """open_clip's CLIP, CustomTextCLIP or CoCa: an nn.Module with `encode_text`, `encode_image` and `visual`."""
    preprocess: Callable[[Image.Image], Tensor]
    """PIL image -> float [3, H, W]; mean and std differ between tags of one architecture."""
    tokenizer: Any
    """open_clip's: (captions, context_length) -> int64 [N, L]; its `context_length` is the default."""


class OpenClipEncoder:
    """Frozen CLIP: captions, and images too, -> unit-length vectors."""

    def __init__(self, name: str, clip: OpenClip, device: str | torch.device = "cpu") -> None:
        self.name = name
        self.model, self.preprocess, self.tokenizer, self.device = *clip, device
        self.tower = TextTower(clip.model)

    @classmethod
    def load(cls, name: str, weights: Path | None = None, device: str | torch.device = "cpu") -> "OpenClipEncoder":
        """Arguments and errors of `load_open_clip`."""
        return cls(name, load_open_clip(name, weights, device), device)

    @cached_property
    def dimension(self) -> int:
        return self.encode(["a"]).shape[1]

    @cached_property
    def weights_sha256(self) -> str:
        """Of the text tower's parameters."""
        return self.tower.sha256()

    @torch.inference_mode()
    def encode(self, captions: list[str], half: bool = False) -> Tensor:
        """N captions -> float32 [N, E] on the CPU, unit length, in their order.

        More than FEW are sorted by length and padded no further than their neighbours, which changes vectors by 1e-7.
        `half`: float16 where autocast allows it, for GPUs; vectors then differ by up to 1e-3 in direction.
        """
        windows = [captions[i : i + SORTED_AT_ONCE] for i in range(0, len(captions), SORTED_AT_ONCE)]
        with torch.autocast(torch.device(self.device).type, torch.float16, enabled=half):
            return torch.cat([self._encode_sorted(self.tokenizer(w), len(captions) > FEW) for w in windows])

    @torch.inference_mode()
    def encode_images(self, images: Tensor, half: bool = False) -> Tensor:
        """What `preprocess` makes of N images, float [N, 3, S, S] -> float32 [N, E] on the CPU, unit length."""
        with torch.autocast(torch.device(self.device).type, torch.float16, enabled=half):
            vectors = self.model.encode_image(images.to(self.device))
        return torch.nn.functional.normalize(vectors.float(), dim=1).cpu()

    def _encode_sorted(self, tokens: Tensor, cut: bool) -> Tensor:
        """int64 [N, L] -> float32 [N, E] on the CPU, unit length.

        Longest first: a batch is as wide as its first row needs, and too little memory shows at once.
        """
        lengths = self.tower.lengths(tokens) if cut else torch.full((len(tokens),), tokens.shape[1])
        lengths, order = lengths.sort(descending=True, stable=True)
        sorted_tokens = tokens[order].to(self.device)
        at_once = CPU_TOKENS if torch.device(self.device).type == "cpu" else GPU_TOKENS
        parts, start = [], 0
        while start < len(order):
            width = self._width(int(lengths[start]), tokens.shape[1])
            end = start + max(1, at_once // width)
            parts.append(self.tower.encode(sorted_tokens[start:end], width).float())
            start = end
        vectors = torch.nn.functional.normalize(torch.cat(parts), dim=1).cpu()
        return torch.empty_like(vectors).index_copy_(0, order, vectors)

    def _width(self, length: int, most: int) -> int:
        """Columns for rows of `length` tokens: GPUs multiply matrices fastest in steps of eight."""
        steps = 8 if torch.device(self.device).type == "cuda" else 1
        return min(-(-length // steps) * steps, most)

    def count_truncated(self, captions: list[str]) -> int:
        """How many captions are cut at the context length (77 tokens for CLIP), which open_clip does silently.

        Its tokenizers tell no lengths and pad with various numbers, so: with twice the room, is anything behind the
        context length that an empty caption has not there? (One token too many can escape where padding is the end
        mark.)
        """
        length = self.tokenizer.context_length
        behind = self.tokenizer(["", *captions], context_length=2 * length)[:, length:]
        return int((behind[1:] != behind[0]).any(dim=1).sum())


def load_open_clip(name: str, weights: Path | None = None, device: str | torch.device = "cpu") -> OpenClip:
    """`name` is 'architecture/tag', e.g. 'ViT-L-14/laion2b_s32b_b82k'; `weights` a local copy of the tag's file.

    Without `weights` open_clip downloads them. Raises UserError for unknown names and when nothing can be loaded.
    """
    import open_clip  # seconds of import that commands without CLIP should not pay

    check_open_clip_name(name, weights)
    architecture, _, tag = name.partition("/")
    # These go with the tag, not with the architecture: laion2b_s32b_b82k has mean 0.5, openai 0.4815 and quick GELU.
    config = open_clip.get_pretrained_cfg(architecture, tag)
    try:
        if weights is None and config.get("hf_hub"):
            _check_obtainable(config["hf_hub"])
        tokenizer = open_clip.get_tokenizer(architecture)  # before gigabytes of weights, for some need transformers
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=str(weights) if weights else tag,
            device=device,
            image_mean=config.get("mean"),
            image_std=config.get("std"),
            image_interpolation=config.get("interpolation"),
            image_resize_mode=config.get("resize_mode"),
            force_quick_gelu=bool(config.get("quick_gelu")),
            require_pretrained=True,  # without it open_clip goes on with random weights after a log line
        )
    except Exception as error:  # hub, network, file and shape errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot load {name}: {reason}. Without network pass a local copy of the weights (--encoder_weights FILE)"
        ) from None
    return OpenClip(model.eval().requires_grad_(False), preprocess, tokenizer)


def check_open_clip_name(name: str, weights: Path | None = None) -> None:
    """UserError with the nearest name unless open_clip knows the architecture, and the tag too without `weights`."""
    import open_clip

    architecture, _, tag = name.partition("/")
    _check_known(architecture, open_clip.list_models(), "CLIP architecture")  # keeps 'hf-hub:' and 'local-dir:' out
    if weights is None:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        _check_known(tag, tags, f"pretrained tag of {architecture}")
    elif not weights.is_file():
        raise UserError(f"encoder weights {weights}: no such file")


def _check_known(word: str, valid: list[str], what: str) -> None:
    if word not in valid:
        raise UserError(
            f"unknown {what} '{word}'{nearest(word, valid)} (names are written 'ViT-L-14/laion2b_s32b_b82k')"
        )


def _check_obtainable(source: str) -> None:
    """OSError unless the weights of `source`, 'owner/name/file' or 'owner/name/', can be had."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = source.rpartition("/")
    files = (f"{Path(file).stem}.safetensors", file) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    check_obtainable(repository, files)


def check_obtainable(repository: str, files: tuple[str, ...]) -> None:
    """OSError unless one of the files is in huggingface_hub's cache or its server answers.

    One question without retries: open_clip and timm would ask six times for each of two files, for a minute in all.
    """
    import huggingface_hub

    if any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in files):
        return
    try:
        huggingface_hub.file_exists(repository, files[-1])
    except huggingface_hub.errors.HfHubHTTPError:
        return  # a refusal is an answer too: who downloads finds out the rest
    except Exception as error:  # of the HTTP library, which changes between versions of huggingface_hub
        raise OSError(f"the weights are not in the cache and the server cannot be reached ({error})") from None
