"""CLIP score: the conventions on fixed vectors, and the whole path with a tiny CLIP of random weights."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evaluation.clip_score import ClipScoreOptions, score
from evaluation.extractors.clip_images import encode_texts
from evaluation.metrics.text_agreement import clip_score
from evaluation.sources import opening
from toolkit.encoders.open_clip_encoder import load_open_clip
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

MODEL = "tiny-test"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A CLIP of random weights that open_clip knows by name: it understands nothing."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{MODEL}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / f"{MODEL}.json")
    torch.manual_seed(0)
    path = folder / "weights.pt"
    torch.save(open_clip.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("burek", (200, 150, 60)), ("salad", (40, 160, 50)), ("lemon", (240, 230, 40))):
        Image.new("RGB", (40, 40), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")
    return folder


def options_for(fake: Path, weights: Path, **changes) -> ClipScoreOptions:
    local = {"model": MODEL, "pretrained": "local", "clip_weights": weights, "device": "cpu"}
    return ClipScoreOptions(fake=fake, **(local | changes))


def at_cosine(cosine: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 0.0]]), torch.tensor([[cosine, (1 - cosine**2) ** 0.5]])


def test_conventions_on_fixed_vectors():
    assert clip_score(*at_cosine(0.3)) == pytest.approx((30.0, 0.75, 0.3), rel=1e-6)
    assert clip_score(*at_cosine(-0.2)) == pytest.approx((0.0, 0.0, -0.2), rel=1e-6)
    both = [torch.cat(pair) for pair in zip(at_cosine(0.3), at_cosine(-0.2), strict=True)]
    assert clip_score(*both) == pytest.approx((15.0, 0.375, 0.05), rel=1e-6)
    assert clip_score(7 * both[0], both[1] / 3) == pytest.approx((15.0, 0.375, 0.05), rel=1e-6)


def test_report_of_an_image_folder(folder, weights):
    report = score(options_for(folder, weights))
    assert report["clip_score_hessel"] * 40 == pytest.approx(report["clip_score"])
    assert -1 <= report["mean_cosine"] <= 1 and report["clip_score_shuffled"] >= 0
    protocol = report["protocol"]
    assert (protocol["model"], protocol["pretrained"], protocol["prefix"]) == (MODEL, "local", "")
    assert "torchmetrics" in protocol["formulas"]["clip_score"] and protocol["n_fake"] == 3
    assert json.loads(json.dumps(report)) == report


def test_report_equals_the_model_by_hand_in_any_batch(folder, weights):
    clip = load_open_clip(f"{MODEL}/local", weights)
    names = ("burek", "lemon", "salad")
    images = torch.stack([clip.preprocess(Image.open(folder / f"{name}.png")) for name in names])
    texts = clip.tokenizer([f"A photo depicts a photo of {name}" for name in names])
    cosines = torch.cosine_similarity(clip.model.encode_image(images), clip.model.encode_text(texts))
    for batch in (1, 3):
        report = score(options_for(folder, weights, batch=batch, prefix="A photo depicts "))
        assert report["mean_cosine"] == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_errors_name_what_to_mend(folder, weights):
    with pytest.raises(UserError, match="--clip_weights FILE"):
        broken = folder.parent / "broken.pt"
        broken.write_bytes(b"no weights")
        score(options_for(folder, broken))
    with pytest.raises(UserError, match="unknown CLIP architecture"):
        score(options_for(folder, weights, model="ViT-B-31"))
    (folder / "burek.txt").unlink()
    with pytest.raises(UserError, match=r"burek\.txt"):
        score(options_for(folder, weights))


class Grey(nn.Linear):
    """A generator of grey images of 16 px."""

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        return torch.zeros(len(z), 3, 16, 16)


class FakeGenerator:
    """One that was trained under a given encoder identity."""

    name = "runs/fake/ckpt_0000001"
    network = Grey(1, 1)
    guided = False

    class config:
        resolution, z_dim, frozen_backbone = 16, 4, ""

    def __init__(self, identity: EncoderIdentity) -> None:
        self.identity = identity


@pytest.mark.parametrize("same", [True, False])
def test_the_conditioning_clip_is_noticed_as_a_judge(tmp_path, weights, monkeypatch, same):
    captions = ["burek", "salad"]
    vectors = encode_texts(load_open_clip(f"{MODEL}/local", weights), captions, CPU)
    identity = EncoderIdentity.from_vectors("other-name", captions, vectors if same else vectors.roll(1, dims=1))
    monkeypatch.setattr(opening, "load_generator", lambda path, device: FakeGenerator(identity))
    monkeypatch.setattr(opening, "read_prompts", lambda *_: (captions, vectors))
    checkpoint = tmp_path / "generator.safetensors"
    checkpoint.touch()
    report = score(options_for(checkpoint, weights, prompts=tmp_path))
    assert report["protocol"]["checkpoint"] == FakeGenerator.name and report["protocol"]["n_fake"] == 2
    assert any("self-serving" in note for note in report["notes"]) == same
