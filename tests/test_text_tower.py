"""Sorted and cut to the longest caption, text embeddings are the full computation's; other towers read every column."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.tiny_text import CAPTIONS, CONTEXT, LENGTHS, RICE, TEXT, TOKENS, VISION, build, encoder_of, in_full
from toolkit.encoders import open_clip_encoder
from toolkit.encoders.text_encoder import PROBE_CAPTIONS, EncoderIdentity
from toolkit.encoders.text_tower import TextTower


def columns_read(model: nn.Module) -> list[tuple[int, int]]:
    """The list grows by (rows, columns) whenever the model looks tokens up."""
    seen = []
    tower = model.text if hasattr(model, "text") else model
    tower.token_embedding.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    return seen


CAUSAL = {
    "CLIP": lambda: build(),
    "CLIP that pools its end mark": lambda: build(pool_type="eos", eos_id=49407),
    "CLIP that pools a word": lambda: build(pool_type="eos", eos_id=RICE),
    "CustomTextCLIP": lambda: build(CustomTextCLIP),
    "CustomTextCLIP that pools its end mark": lambda: build(CustomTextCLIP, pool_type="eos", eos_id=49407),
    "CustomTextCLIP with a biased projection": lambda: build(CustomTextCLIP, proj_bias=True),
    "CustomTextCLIP with normalised queries": lambda: build(CustomTextCLIP, qk_norm=True, scale_fc=True),
}


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL.keys())
class TestCausal:
    def test_equals_the_full_computation(self, make: Callable, monkeypatch) -> None:
        model = make()
        expected = in_full(model, CAPTIONS)
        for tokens, window in ((640, 16384), (100, 16384), (1, 16384), (10_000, 5), (100, 3)):
            monkeypatch.setattr(open_clip_encoder, "CPU_TOKENS", tokens)
            monkeypatch.setattr(open_clip_encoder, "SORTED_AT_ONCE", window)
            found = encoder_of(model).encode(CAPTIONS)
            assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-6
        assert (in_full(model, CAPTIONS) == expected).all()  # the model itself is as it was

    def test_a_caption_alone_has_the_vector_it_has_in_company(self, make: Callable) -> None:
        encoder = encoder_of(make())
        together = encoder.encode(CAPTIONS)
        alone = torch.cat([encoder.encode([caption]) for caption in CAPTIONS])
        assert (alone - together).abs().max() < 1e-6
        of_its_length = torch.cat([encoder.encode([caption] * 5)[:1] for caption in CAPTIONS])
        assert (of_its_length - together).abs().max() < 1e-6
        backwards = encoder.encode(CAPTIONS[::-1]).flip(0)
        assert (backwards - together).abs().max() < 1e-6


def test_a_batch_is_as_wide_as_its_longest_caption(monkeypatch) -> None:
    monkeypatch.setattr(open_clip_encoder, "CPU_TOKENS", 80)
    for kind in (CLIP, CustomTextCLIP):
        model = build(kind)
        seen = columns_read(model)
        encoder_of(model).encode(CAPTIONS[: len(LENGTHS)])
        widths, left = [], sorted(TOKENS, reverse=True)
        while left:
            widths.append((min(80 // left[0], len(left)) or 1, left[0]))
            left = left[widths[-1][0] :]
        assert seen == widths
        assert sum(rows * columns for rows, columns in seen) < 0.6 * len(LENGTHS) * CONTEXT


def test_lengths_reach_to_the_pooled_token() -> None:
    tokens = open_clip.SimpleTokenizer()(["", "red", "red rice", "red rice plate rice"])
    for kind in (CLIP, CustomTextCLIP):
        assert TextTower(build(kind)).lengths(tokens).tolist() == [2, 3, 4, 6]
        # open_clip pools the first token where the one it looks for is absent
        assert TextTower(build(kind, pool_type="eos", eos_id=RICE)).lengths(tokens).tolist() == [1, 1, 3, 3]
        assert TextTower(build(kind, pool_type="last")).lengths(tokens).tolist() == [CONTEXT] * 4


def test_a_gpu_gets_columns_in_steps_of_eight() -> None:
    encoder = encoder_of(build())
    assert [encoder._width(n, CONTEXT) for n in (2, 8, 9, 77)] == [2, 8, 9, 77]
    for device in ("cuda", torch.device("cuda:1")):
        encoder.device = device
        assert [encoder._width(n, CONTEXT) for n in (2, 8, 9, 72, 73, 77)] == [8, 8, 16, 72, 77, 77]


def test_wider_than_needed_changes_nothing() -> None:
    model = build()
    tokens = open_clip.SimpleTokenizer()(["red rice", "a dish"])
    for width in (4, 8, 76, 77):
        found = normalize(TextTower(model).encode(tokens, width), dim=1)
        assert (found - in_full(model, ["red rice", "a dish"])).abs().max() < 1e-6
    short = normalize(TextTower(model).encode(tokens, 3), dim=1)
    assert (short - in_full(model, ["red rice", "a dish"])).abs().max() > 1e-3  # 4 are needed


class Averaging(nn.Module):
    """Reads every column, as the transformers' towers with mean pooling do."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(49408, 24)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens).mean(dim=1)


class Backwards(CLIP):
    """A subclass may do anything with its tokens."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return super().encode_text(text.flip(1), normalize)


class BackwardsTower(TextTransformer):
    def forward(self, text: Tensor) -> Tensor:
        return super().forward(text.flip(1))


def averaging() -> nn.Module:
    model = build(CustomTextCLIP)
    model.text = Averaging()
    return model.requires_grad_(False)


def backwards_tower() -> nn.Module:
    model = build(CustomTextCLIP)
    model.text.__class__ = BackwardsTower
    return model


def with_gap() -> nn.Module:
    """A mask that lets the first token see the last one."""
    model = build()
    model.attn_mask[0, -1] = 0
    return model


def coca() -> nn.Module:
    torch.manual_seed(0)
    text = TEXT | {"context_length": CONTEXT - 1, "embed_cls": True, "output_tokens": True}
    vision = VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    decoder = {"context_length": CONTEXT - 1, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
    return open_clip.CoCa(24, decoder, text, vision).eval().requires_grad_(False)


OTHERS = {
    "SigLIP's": lambda: build(CustomTextCLIP, no_causal_mask=True, pool_type="last", proj_bias=True),
    "bidirectional CLIP": lambda: build(no_causal_mask=True),
    "causal, last token": lambda: build(pool_type="last"),
    "causal, last token, CustomTextCLIP": lambda: build(CustomTextCLIP, pool_type="last"),
    "own token at the end": lambda: build(CustomTextCLIP, embed_cls=True),
    "not open_clip's own tower": averaging,
    "subclass": lambda: build(Backwards),
    "subclass of the tower": backwards_tower,
    "not quite causal": with_gap,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_other_towers_read_every_column(make: Callable) -> None:
    model = make()
    expected = in_full(model, CAPTIONS)
    seen = columns_read(model)
    assert (encoder_of(model).encode(CAPTIONS) - expected).abs().max() < 1e-6
    assert {columns for _, columns in seen} == {CONTEXT}


def test_coca_reads_every_column() -> None:
    model, tokenizer = coca(), open_clip.SimpleTokenizer(context_length=CONTEXT - 1)
    encoder = encoder_of(model)
    encoder.tokenizer = tokenizer
    with torch.no_grad():
        expected = normalize(model.encode_text(tokenizer(CAPTIONS)), dim=1)
    seen = columns_read(model)
    assert (encoder.encode(CAPTIONS) - expected).abs().max() < 1e-6
    assert {columns for _, columns in seen} == {CONTEXT - 1}


def test_the_fingerprint_keeps_its_bytes() -> None:
    """float16 of the full computation, as shards recorded it when there was no other."""
    for make in CAUSAL.values():
        model = make()
        recorded = EncoderIdentity.from_vectors("tiny", list(PROBE_CAPTIONS), in_full(model, list(PROBE_CAPTIONS)))
        seen = columns_read(model)
        found = EncoderIdentity.of(encoder_of(model))
        assert replace(found, weights_sha256="") == recorded and found.weights_sha256 == TextTower(model).sha256()
        assert seen == [(len(PROBE_CAPTIONS), CONTEXT)]


def test_real_captions(real_data: Path) -> None:
    rows = (real_data / "data/based-cooking/captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [json.loads(row)["caption"] for row in rows]
    model = build()
    assert len(captions) > 100
    assert (encoder_of(model).encode(captions) - in_full(model, captions)).abs().max() < 1e-6
