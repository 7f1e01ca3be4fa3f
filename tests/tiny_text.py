"""Tiny text towers of random weights, captions of many lengths, and what open_clip itself computes of them."""

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn
from torch.nn.functional import normalize

from toolkit.encoders.open_clip_encoder import OpenClip, OpenClipEncoder

CONTEXT = 77
LENGTHS = (5, 74, 0, 12, 1, 75, 12, 30, 200, 3, 76, 8, 19, 5)
"""In words, of one token each; start and end make two more, and 75 fill the context."""
CAPTIONS = [" ".join(["dish", "rice", "red", "plate"][(i + k) % 4] for k in range(n)) for i, n in enumerate(LENGTHS)]
CAPTIONS += ["ћевапи са луком, š ć ž 🍕", "a photo"]
TOKENS = [min(n + 2, CONTEXT) for n in LENGTHS]
RICE = int(open_clip.SimpleTokenizer()(["rice"])[0, 1])
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}


def build(kind: type = CLIP, **text) -> nn.Module:
    """Random weights, with position embeddings as large as the tokens': a shift of one position shows."""
    torch.manual_seed(0)
    model = kind(24, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**(TEXT | text)))
    tower = model.text if kind is CustomTextCLIP else model
    nn.init.normal_(tower.token_embedding.weight)
    nn.init.normal_(tower.positional_embedding)
    return model.eval().requires_grad_(False)


def encoder_of(model: nn.Module, device: str = "cpu") -> OpenClipEncoder:
    return OpenClipEncoder("tiny", OpenClip(model.to(device), None, open_clip.SimpleTokenizer()), device)


@torch.no_grad()
def in_full(model: nn.Module, captions: list[str]) -> Tensor:
    """What open_clip computes: all columns, the captions in their order."""
    return normalize(model.encode_text(open_clip.SimpleTokenizer()(captions)).float(), dim=1)
