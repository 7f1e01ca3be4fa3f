"""Text towers of open_clip without the padding they would compute.

Captions are padded to 77 tokens and rarely fill 20. Where attention is causal and one token is pooled, nothing behind
that token enters the vector, so the columns behind the last pooled token of a batch can be left out. open_clip's
`encode_text` adds all 77 positions; here it runs with its position table and its mask shortened.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from toolkit.networks.weights_file import tensors_sha256


class _Causal(NamedTuple):
    """What has to be known of a tower whose padding can be left out."""

    path: str
    """Where position table and mask lie in the model: '' or 'text.'."""
    positions: Tensor
    """float [context, width]."""
    mask: Tensor
    """float [context, context]: 0 up to the diagonal, -inf above it."""
    end: int | None
    """The first token of this number is pooled; None: the largest number of the row, as in the first CLIP."""


class TextTower(nn.Module):
    """The text half of an open_clip model; short batches cost what they hold."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._causal = _causal(model)

    def lengths(self, tokens: Tensor) -> Tensor:
        """int64 [N, L] -> int64 [N]: how many leading tokens the vector depends on; L for towers that read them all."""
        if self._causal is None:
            return torch.full((len(tokens),), tokens.shape[1])
        ends = tokens if self._causal.end is None else (tokens == self._causal.end).int()
        return ends.argmax(dim=1) + 1

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [N, L] -> [N, E], not normalised."""
        return self.model.encode_text(tokens)

    def encode(self, tokens: Tensor, length: int) -> Tensor:
        """int64 [N, L] -> [N, E] from the first `length` columns, at least the largest of `lengths(tokens)`.

        Equal to `forward(tokens)` up to float rounding (1e-7 relative).
        """
        if self._causal is None or length >= tokens.shape[1]:
            return self(tokens)
        path = f"model.{self._causal.path}"
        shortened = {
            f"{path}positional_embedding": self._causal.positions[:length],
            f"{path}attn_mask": self._causal.mask[:length, :length],
        }
        return functional_call(self, shortened, (tokens[:, :length],), tie_weights=False)

    def sha256(self) -> str:
        """Over name, shape, type and bytes of each parameter of the text half, in the order of their names.

        The image's half, the logit's scale and CoCa's decoder stay out: no text vector depends on them.
        """
        state = self.model.state_dict()
        own = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
        own = own or {name: value for name, value in state.items() if not name.startswith(("visual.", "logit_"))}
        return tensors_sha256(own)


def _causal(model: Any) -> _Causal | None:
    """None for every tower not known to ignore what stands behind the pooled token.

    So for SigLIP and CLIPA (bidirectional, last token), CoCa (an own token at the end) and the transformers' towers.
    Exact types: a subclass may read its tokens in another way.
    """
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    if type(model) is CLIP:
        path, tower, pool, end = "", model, getattr(model, "text_pool_type", ""), getattr(model, "text_eos_id", None)
    elif type(model) is CustomTextCLIP and type(model.text) is TextTransformer and model.text.cls_emb is None:
        path, tower, pool, end = "text.", model.text, model.text.pool_type, model.text.eos_id
    else:
        return None
    known = pool == "argmax" or (pool == "eos" and end is not None)
    if not known or not _is_causal(tower.attn_mask):
        return None
    return _Causal(path, tower.positional_embedding, tower.attn_mask, end if pool == "eos" else None)


def _is_causal(mask: Tensor | None) -> bool:
    return mask is not None and torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1))
