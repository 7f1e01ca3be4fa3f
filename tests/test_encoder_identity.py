"""What is recorded of an encoder, what of it decides, and that older records still load."""

import dataclasses
import hashlib
import json

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import nn

from tests.tiny_text import build, encoder_of
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity, TextEncoder
from toolkit.encoders.text_tower import TextTower


def sha256(model: nn.Module) -> str:
    return TextTower(model).sha256()


class TestWeights:
    def test_by_hand(self) -> None:
        """A tower of which two tensors are all."""
        model = nn.Module()
        model.text = nn.Linear(2, 3)
        digest = hashlib.sha256()
        for name, shape in (("bias", "[3]"), ("weight", "[3, 2]")):
            digest.update(f"{name} {shape} torch.float32\n".encode())
            digest.update(getattr(model.text, name).detach().numpy().tobytes())
        assert sha256(model) == digest.hexdigest()

    def test_every_parameter_of_the_text_counts_and_no_other(self) -> None:
        model = build()
        before = sha256(model)
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.view(-1)[0] += 1
            assert (sha256(model) == before) == name.startswith(("visual.", "logit_")), name
            parameter.copy_(kept)
        assert sha256(model) == before

    def test_the_same_weights_in_another_class_of_model(self) -> None:
        one, other = build(), build(CustomTextCLIP)
        state = {name: value for name, value in one.state_dict().items() if not name.startswith(("visual.", "logit"))}
        other.text.ln_final.weight += 1
        assert sha256(one) != sha256(other)
        other.text.load_state_dict(state)
        assert sha256(one) == sha256(other)

    def test_recorded_once_and_with_the_vectors(self, monkeypatch) -> None:
        encoder, calls = encoder_of(build()), []
        real = TextTower.sha256
        monkeypatch.setattr(TextTower, "sha256", lambda self: calls.append(self) or real(self))
        assert EncoderIdentity.of(encoder) == EncoderIdentity.of(encoder) and len(calls) == 1
        assert EncoderIdentity.of(encoder).weights_sha256 == real(encoder.tower)
        assert EncoderIdentity.of(HashingEncoder()).weights_sha256 == ""


def tuned(amount: float) -> TextEncoder:
    encoder = encoder_of(build())
    torch.manual_seed(1)
    for name, parameter in encoder.model.named_parameters():
        if not name.startswith(("visual.", "logit_")):
            parameter += amount * parameter.std() * torch.randn_like(parameter)
    return encoder


def test_the_cosine_decides_and_the_hash_is_named() -> None:
    """Half precision in the file, or another class of model, changes the hash and nothing that counts."""
    one = EncoderIdentity.of(tuned(0))
    near, far = (EncoderIdentity.of(tuned(amount)) for amount in (1e-3, 1))
    assert len({one.weights_sha256, near.weights_sha256, far.weights_sha256}) == 3
    assert one.difference(near) == ""
    said = one.difference(far)
    assert said.startswith("same name tiny, other weights: cosine ")
    assert said.endswith(f"(SHA-256 of the text tower {one.weights_sha256[:12]} against {far.weights_sha256[:12]})")
    unknown = dataclasses.replace(far, weights_sha256="")
    assert one.difference(unknown).endswith("on the probe captions")


class TestJson:
    def fields(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(EncoderIdentity.of(encoder_of(build()), "fp16"))))

    def test_round_trip(self) -> None:
        assert EncoderIdentity.from_json(self.fields()) == EncoderIdentity.of(encoder_of(build()), "fp16")
        assert (self.fields()["precision"], self.fields()["normalised"]) == ("fp16", True)

    def test_a_record_from_before_there_were_more_fields(self) -> None:
        old = {name: self.fields()[name] for name in ("name", "dimension", "probe_captions", "probe_vectors")}
        found = EncoderIdentity.from_json(old)
        assert (found.weights_sha256, found.precision, found.normalised) == ("", "fp32", True)
        assert found.difference(EncoderIdentity.of(encoder_of(build()))) == ""

    @pytest.mark.parametrize(
        "change",
        [
            {"weights_sha256": "abc"},
            {"weights_sha256": 5},
            {"weights_sha256": "0" * 63 + "\n"},
            {"precision": "bf16"},
            {"precision": ["fp32"]},
            {"normalised": 1},
            {"color": "red"},
        ],
    )
    def test_what_is_none(self, change: dict) -> None:
        with pytest.raises((ValueError, TypeError)):
            EncoderIdentity.from_json(self.fields() | change)
