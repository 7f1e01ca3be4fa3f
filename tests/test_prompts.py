"""Prompts that were drawn before need no encoder; nothing else may stand in for it."""

from pathlib import Path

import pytest
import torch

from tests.tiny_clip import NAME, save_weights
from toolkit.encoders import prompts as prompts_module
from toolkit.encoders.prompts import FEW, PromptEncoder
from toolkit.encoders.text_encoder import EncoderIdentity, load_encoder
from toolkit.errors import UserError

CPU = torch.device("cpu")
TEXTS = ["a red disc", "ćevapi with onions", "a red disc"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    return save_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def loaded(weights, monkeypatch) -> list[Path]:
    """The files of weights that were loaded as encoders: the first, where the command's user names none."""
    seen = []

    def load(identity, path, device):
        seen.append(path)
        encoder = load_encoder(NAME, path or weights[0], device)
        assert identity.cosine(encoder) > 0.999
        return encoder

    monkeypatch.setattr(prompts_module, "load_encoder_of", load)
    return seen


@pytest.fixture
def identity(weights) -> EncoderIdentity:
    return EncoderIdentity.of(load_encoder(NAME, weights[0]))


def test_the_second_time_needs_no_encoder(identity, loaded, tmp_path):
    first, _ = PromptEncoder(identity, None, CPU, tmp_path / "kept").encode(TEXTS)
    assert len(loaded) == 1 and torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    again, cut = PromptEncoder(identity, None, CPU, tmp_path / "kept").encode(TEXTS[::-1])
    assert len(loaded) == 1 and torch.equal(again, first.flip(0)) and cut == 0
    encoder = PromptEncoder(identity, None, CPU, tmp_path / "kept")
    more, _ = encoder.encode([*TEXTS, "new"])
    assert len(loaded) == 2 and torch.equal(more[:3], first)
    encoder.encode(["newer"])
    assert len(loaded) == 2  # one process loads it once


def test_a_long_prompt_is_reported_each_time(identity, loaded, tmp_path):
    for _ in range(2):
        assert PromptEncoder(identity, None, CPU, tmp_path / "kept").encode(["onions " * 200, "burek"])[1] == 1
    assert len(loaded) == 1


def test_another_encoders_vectors_a_damaged_file_and_own_weights_are_not_used(identity, weights, loaded, tmp_path):
    folder = tmp_path / "kept"
    first, _ = PromptEncoder(identity, None, CPU, folder).encode(TEXTS[:1])
    other = EncoderIdentity.of(load_encoder(NAME, weights[1]))
    with pytest.raises(AssertionError):  # asks for the encoder, which is not its own
        PromptEncoder(other, None, CPU, folder).encode(TEXTS[:1])
    PromptEncoder(identity, weights[0], CPU, folder).encode(TEXTS[:1])
    assert loaded[-1] == weights[0]
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    again, _ = PromptEncoder(identity, None, CPU, folder).encode(TEXTS[:1])
    assert torch.equal(again, first) and len(loaded) == 4


def test_nothing_is_written_without_a_folder_or_for_a_data_set(identity, loaded, tmp_path):
    PromptEncoder(identity, None, CPU, None).encode(TEXTS)
    PromptEncoder(identity, None, CPU, tmp_path / "kept").encode([f"dish {i}" for i in range(FEW + 1)])
    assert not (tmp_path / "kept").exists()


def test_an_encoder_that_cannot_be_had_is_one_line(identity, tmp_path, monkeypatch):
    def none(*arguments):
        raise UserError("no encoder")

    monkeypatch.setattr(prompts_module, "load_encoder_of", none)
    with pytest.raises(UserError, match="no encoder"):
        PromptEncoder(identity, None, CPU, tmp_path).encode(["burek"])
