"""open_clip by name: wrong names, no network and cut captions are told at once, in one line, for any tokenizer."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from toolkit.encoders.open_clip_encoder import OpenClipEncoder, check_open_clip_name, load_open_clip
from toolkit.errors import UserError

NAME = "ViT-B-32/laion2b_s34b_b79k"


class TestNames:
    @pytest.mark.parametrize(
        "name, message",
        [
            ("ViT-L-41/openai", "unknown CLIP architecture 'ViT-L-41'; did you mean 'ViT-L-1"),
            ("ViT-B-32/laion2b_s34b_b97k", "tag of ViT-B-32 'laion2b_s34b_b97k'; did you mean 'laion2b_s34b_b79k'"),
            ("ViT-B-32", "unknown pretrained tag of ViT-B-32 ''"),
            ("hf-hub:somebody/else", "unknown CLIP architecture 'hf-hub:somebody'"),
        ],
    )
    def test_unknown(self, name: str, message: str) -> None:
        for refuse in (check_open_clip_name, load_open_clip):
            with pytest.raises(UserError, match=message):
                refuse(name)

    def test_known(self, tmp_path: Path) -> None:
        check_open_clip_name(NAME)
        (tmp_path / "mine.pt").touch()
        check_open_clip_name("ViT-B-32/mine", tmp_path / "mine.pt")
        with pytest.raises(UserError, match="no such file"):
            check_open_clip_name(NAME, tmp_path / "gone.pt")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """What open_clip was asked to load; it loads nothing."""
    asked = []

    def create(architecture: str, pretrained: str, **_) -> tuple:
        asked.append(f"{architecture}/{pretrained}")
        return torch.nn.Identity(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    return asked


class TestNetwork:
    def test_none_is_told_at_once_and_in_one_line(self, empty_cache, monkeypatch, capfd, caplog) -> None:
        nobody_listens = "http://127.0.0.1:9"
        monkeypatch.setattr(huggingface_hub.file_exists.__self__, "endpoint", nobody_listens)
        start = time.perf_counter()
        with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="cannot be reached .*--encoder_weights"):
            load_open_clip(NAME)
        assert time.perf_counter() - start < 5
        assert capfd.readouterr() == ("", "") and not caplog.records

    def test_any_answer_leaves_the_rest_to_open_clip(self, empty_cache, loaded: list[str], monkeypatch) -> None:
        asked = []
        monkeypatch.setattr(huggingface_hub, "file_exists", lambda *place: asked.append(place))
        load_open_clip(NAME)
        assert loaded == [NAME]
        assert asked == [("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_pytorch_model.bin")]

        def refuse(*_) -> None:
            response = SimpleNamespace(headers={}, request=None)
            raise huggingface_hub.errors.HfHubHTTPError("503 busy", response=response)

        monkeypatch.setattr(huggingface_hub, "file_exists", refuse)
        load_open_clip(NAME)
        assert loaded == [NAME, NAME]

    @pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
    def test_what_is_cached_needs_none(
        self, empty_cache, loaded: list[str], tmp_path: Path, monkeypatch, file: str
    ) -> None:
        folder = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (folder / "snapshots" / ("0" * 40) / file).touch()
        monkeypatch.setattr(huggingface_hub, "file_exists", None)  # calling it would fail
        load_open_clip(NAME)
        assert loaded == [NAME]


def truncated(tokenizer: object, *words: int) -> int:
    """count_truncated of captions of so many words."""
    encoder = OpenClipEncoder.__new__(OpenClipEncoder)
    encoder.tokenizer = tokenizer
    return encoder.count_truncated([" ".join(["dish"] * count) for count in words])


def test_truncation_with_clips_own_tokenizer() -> None:
    """77 tokens are start, 75 words, end."""
    assert truncated(SimpleTokenizer(), 0, 1, 75, 76, 77, 500) == 3
    assert truncated(SimpleTokenizer(context_length=10), 8, 9) == 1
    assert truncated(SimpleTokenizer()) == 0


@pytest.mark.parametrize("padding", [0, 1])
def test_truncation_with_a_hugging_face_tokenizer(padding: int) -> None:
    """open_clip's wrapper around a transformers tokenizer: [start, words, end, padding ...]."""

    def tokenize(texts: list[str], max_length: int, **_) -> SimpleNamespace:
        rows = []
        for text in texts:
            row = [101, *(7 for _ in text.split()), 102]
            row = row if len(row) <= max_length else [*row[: max_length - 1], 102]
            rows.append(row + [padding] * (max_length - len(row)))
        return SimpleNamespace(input_ids=torch.tensor(rows))

    tokenizer = HFTokenizer.__new__(HFTokenizer)  # its constructor needs transformers and downloads
    tokenizer.tokenizer, tokenizer.context_length, tokenizer.tokenizer_mode = tokenize, 64, ""
    tokenizer.clean_fn, tokenizer.strip_sep_token = str.strip, False
    assert truncated(tokenizer, 0, 1, 62, 63, 500) == 2
