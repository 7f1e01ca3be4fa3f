"""CLIP and DINOv2 as extractors: features against the libraries', refusals, keys; and exact arithmetic."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from evaluation.extractors.clip_images import load_clip
from evaluation.extractors.dinov2 import load_dinov2
from evaluation.extractors.extractor import exact_float32
from tests import tiny_clip
from tests.inception_files import drawn_images
from toolkit.data.images import to_pil
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

CPU = torch.device("cpu")
SMALL_DINOV2 = "vit_small_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory) -> list[Path]:
    return tiny_clip.save_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dinov2_weights(tmp_path_factory) -> Path:
    """Random, as timm writes them, with position embeddings for 518 px."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model(SMALL_DINOV2, num_classes=0)
    for name, values in network.named_parameters():
        if name.endswith("gamma"):  # scales of 1e-5, behind which no image would be seen
            torch.nn.init.ones_(values)
        elif name == "pos_embed":
            torch.nn.init.normal_(values, std=0.2)
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    save_file(network.state_dict(), path)
    return path


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_exact_float32_puts_back_what_it_found():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), exact_float32(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
            assert not torch.is_grad_enabled()
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high" and torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision("highest")


# --- CLIP


def test_clip_features_are_open_clips(clip_weights):
    extractor = load_clip("tiny-test", "local", clip_weights[0], CPU)
    images = drawn_images(5, (50, 40))
    clip = extractor.clip
    with torch.no_grad():
        inputs = torch.stack([clip.preprocess(to_pil(image)) for image in images])
        expected = clip.model.encode_image(inputs, normalize=True)
    found = extractor(images)["clip"]
    assert extractor.taps == ("clip",) and found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(found.norm(dim=1), torch.ones(5))
    assert (found[0] - found[1]).norm() > 0.01  # it looks at the images
    halves = torch.cat([extractor(part)["clip"] for part in images.split(2)])
    assert torch.allclose(halves, found, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # as training has it
        assert torch.equal(extractor(images)["clip"], found)


def test_clip_captions_keep_their_order_and_repeat(clip_weights):
    extractor = load_clip("tiny-test", "local", clip_weights[0], CPU)
    captions = ["a bowl of soup", "pie", "a bowl of soup", "a long caption about a very green salad", "pie"]
    found = extractor.encode_texts(captions)
    with torch.no_grad():
        expected = extractor.clip.model.encode_text(extractor.clip.tokenizer(captions), normalize=True)
    assert torch.allclose(found, expected, atol=1e-6) and torch.equal(found[0], found[2])


def test_clip_knows_itself_as_an_encoder(clip_weights):
    one, other = (load_clip("tiny-test", "local", path, CPU) for path in clip_weights)
    captions = ["a", "a plate", "soup"]
    identity = EncoderIdentity.from_vectors("renamed/anything", captions, one.encode_texts(captions))
    assert one.is_encoder(identity) and not other.is_encoder(identity)
    assert not one.is_encoder(EncoderIdentity.from_vectors("wider", ["a"], torch.ones(1, 768) / 768**0.5))
    assert one.key() != other.key() and one.protocol()["parameters_sha256"] != other.protocol()["parameters_sha256"]
    assert one.key() == load_clip("tiny-test", "local", clip_weights[0], CPU).key()


def test_clip_refusals_name_its_own_options(clip_weights, tmp_path):
    with pytest.raises(UserError, match="CLIP weights .*none.pt: no such file"):
        load_clip("tiny-test", "local", tmp_path / "none.pt", CPU)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="--clip_weights") as caught:
        load_clip("tiny-test", "local", tmp_path / "text.pt", CPU)
    assert "\n" not in str(caught.value) and "--encoder_weights" not in str(caught.value)


# --- DINOv2


def test_dinov2_features_are_timms(dinov2_weights):
    import timm
    from safetensors.torch import load_file

    extractor = load_dinov2(SMALL_DINOV2, dinov2_weights, CPU)
    images = drawn_images(2, (224, 224))  # of this size nothing is resized
    network = timm.create_model(SMALL_DINOV2, num_classes=0, img_size=224).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(load_file(dinov2_weights), network)
    network.load_state_dict(state)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network.forward_features((images / 255 - mean) / deviation)[:, 0]
    found = extractor(images)["dinov2"]
    assert found.shape == (2, 384) and relative(found, expected) < 1e-5
    assert relative(found[:1], found[1:]) > 0.01  # it looks at the images
    one = torch.cat([extractor(image[None])["dinov2"] for image in images])
    assert relative(one, found) < 1e-5
    protocol = extractor.protocol()
    assert protocol["model"] == SMALL_DINOV2 and protocol["parameters_sha256"] in extractor.key()


def test_dinov2_refusals(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(UserError, match="no network.*--dinov2_weights") as caught:
        load_dinov2(SMALL_DINOV2, None, CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="unknown DINOv2 model 'vit_small_patch14_dinov'; did you mean"):
        load_dinov2("vit_small_patch14_dinov", None, CPU)
    with pytest.raises(UserError, match="no such file"):
        load_dinov2(SMALL_DINOV2, tmp_path / "none.safetensors", CPU)
    (tmp_path / "model.pth").write_bytes(b"pickle")
    with pytest.raises(UserError, match="only timm's model.safetensors"):
        load_dinov2(SMALL_DINOV2, tmp_path / "model.pth", CPU)
    (tmp_path / "bad.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="cannot load"):
        load_dinov2(SMALL_DINOV2, tmp_path / "bad.safetensors", CPU)
