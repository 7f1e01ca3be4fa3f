"""Embedding in float16: close to float32, the encoder's identity untouched, refused where it does not pay."""

import pytest
import torch

from shards import embed
from shards.embed import EmbedOptions
from shards.embedding.caption_encoder import CaptionEncoder
from tests.tiny_text import CAPTIONS, build, encoder_of, in_full
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import PROBE_CAPTIONS, EncoderIdentity
from toolkit.errors import UserError


def test_half_is_close_and_the_identity_stays_exact() -> None:
    model = build()
    encoder = CaptionEncoder(encoder_of(model), half=True)
    found, exact = torch.from_numpy(encoder.encode(CAPTIONS)), in_full(model, CAPTIONS)
    assert found.dtype == torch.float32 and (found.norm(dim=1) - 1).abs().max() < 1e-6
    assert torch.cosine_similarity(found, exact).min() > 0.999
    assert (found - exact).abs().max() > 1e-5  # it was half indeed
    probes = in_full(model, list(PROBE_CAPTIONS))
    assert (encoder.encoder.encode(list(PROBE_CAPTIONS)) - probes).abs().max() < 1e-6
    assert encoder.identity.precision == "fp16" and EncoderIdentity.of(encoder.encoder).precision == "fp32"
    expected = EncoderIdentity.from_vectors("tiny", list(PROBE_CAPTIONS), probes).probe_vectors
    assert encoder.identity.probe_vectors == EncoderIdentity.of(encoder.encoder).probe_vectors == expected


def test_half_is_refused_where_it_is_slower_or_means_nothing(caption_folder, tmp_path, monkeypatch) -> None:
    options = EmbedOptions(caption_folder, tmp_path / "out", encoder="hashing", device="cpu", precision="fp16")
    with pytest.raises(UserError, match="fp16 is slower than fp32 on a CPU; leave --precision out"):
        embed.main(options)
    monkeypatch.setattr("shards.embedding.caption_encoder.pick_device", lambda _: torch.device("cuda"))
    with pytest.raises(UserError, match="'hashing' has no fp16"):
        embed.main(options)
    assert not (tmp_path / "out").exists()
    assert (CaptionEncoder(HashingEncoder()).encode(["a"]) == HashingEncoder().encode(["a"]).numpy()).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_and_padded_columns_on_a_gpu() -> None:
    model = build()
    expected = in_full(model, CAPTIONS)
    encoder = encoder_of(model, "cuda")
    assert (encoder.encode(CAPTIONS) - expected).abs().max() < 1e-5
    assert torch.cosine_similarity(encoder.encode(CAPTIONS, half=True), expected).min() > 0.999
