"""Extractors: features against their reference, whatever the batch; weights that must be refused; what names them."""

import dataclasses
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.extractors.clip_images import load_clip
from evaluation.extractors.dinov2 import load_dinov2
from evaluation.extractors.extractor import exact_float32
from evaluation.extractors.inception import load_inception
from tests import tiny_clip
from tests.inception_files import drawn_pictures, write_partial, write_random
from toolkit.data.decoding import fit_square
from toolkit.data.images import from_pil, to_pil
from toolkit.durable import file_sha256
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

CPU = torch.device("cpu")
LAYERS = ("64", "192", "768", "2048", "logits")
SMALL_DINOV2 = "vit_small_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    return write_random(tmp_path_factory.mktemp("weights") / "random.pth")


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
        if name.endswith("gamma"):  # scales of 1e-5, behind which no picture would be seen
            torch.nn.init.ones_(values)
        elif name == "pos_embed":
            torch.nn.init.normal_(values, std=0.2)
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    save_file(network.state_dict(), path)
    return path


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- Inception


def test_every_layer_equals_torch_fidelity_in_one_forward(random_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = [layer.replace("logits", "logits_unbiased") for layer in LAYERS]
    reference = FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=random_weights)
    pictures = drawn_pictures(3)
    extractor = load_inception(LAYERS[::-1], "legacy", random_weights, CPU)
    assert extractor.taps == tuple(f"inception_{layer}" for layer in LAYERS)
    found = extractor(pictures)
    for layer, expected in zip(LAYERS, reference(pictures), strict=True):
        features = found[f"inception_{layer}"]
        assert features.dtype == torch.float32 and features.shape == expected.shape
        assert relative(features, expected) < 5e-6  # measured 6e-7
        assert float(expected.std(dim=0).max()) > 1e-3  # the pictures do differ in it
    alone = load_inception(("192",), "legacy", random_weights, CPU)(pictures)
    assert list(alone) == ["inception_192"] and torch.equal(alone["inception_192"], found["inception_192"])


def test_features_of_a_picture_do_not_depend_on_the_batch(random_weights):
    extractor = load_inception(LAYERS, "legacy", random_weights, CPU)
    pictures = drawn_pictures(8)
    whole = extractor(pictures)
    for size in (1, 3):
        parts = [extractor(part) for part in pictures.split(size)]
        for tap in extractor.taps:
            assert relative(torch.cat([part[tap] for part in parts]), whole[tap]) < 5e-6  # measured 9e-7


def test_golden_features_of_real_photos(real_data, tmp_path):
    """8 photos, centre crop, features computed by torch-fidelity in another environment (measured 5e-7)."""
    golden = np.load(real_data / "weights" / "golden_features_food8.npz")
    photos = [Image.open(real_data / "data" / "food101-10" / str(name)).convert("RGB") for name in golden["files"]]
    pictures = torch.stack([from_pil(fit_square(photo, 128)) for photo in photos])
    weights = write_partial(real_data, tmp_path / "to768.pth")
    found = load_inception(("64", "192", "768"), "legacy", weights, CPU)(pictures)
    for layer in (64, 192, 768):
        assert relative(found[f"inception_{layer}"], torch.from_numpy(golden[f"f{layer}"])) < 2e-6
    with pytest.raises(UserError, match="end before layer 2048"):
        load_inception(("768", "2048"), "legacy", weights, CPU)


def test_a_hostile_weights_file_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    torch.save({"fc.weight": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="refused"):
        load_inception(("2048",), "legacy", tmp_path / "bad.pth", CPU)
    assert not canary.exists()


def test_files_that_are_no_inception(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    for name, reason in (("text.pth", "refused"), ("other.pth", "no torch-fidelity"), ("none.pth", "cannot be read")):
        with pytest.raises(UserError, match=reason) as caught:
            load_inception(("64",), "legacy", tmp_path / name, CPU)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", ["2048", "logits"])
def test_layers_behind_the_end_of_partial_weights_are_refused(random_weights, tmp_path, layer):
    state = torch.load(random_weights, weights_only=True)
    for name in state:
        if name.startswith("Mixed_7b" if layer == "2048" else "fc"):
            state[name] = torch.zeros_like(state[name])
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(UserError, match=f"end before layer {layer}"):
        load_inception(("64", layer), "legacy", tmp_path / "partial.pth", CPU)
    load_inception(("768",), "legacy", tmp_path / "partial.pth", CPU)


def test_unknown_layers_and_resizes(random_weights):
    for layers, resize in (((), "legacy"), (("1024",), "legacy"), (("64",), "nearest")):
        with pytest.raises(UserError, match="it must be"):
            load_inception(layers, resize, random_weights, CPU)


def test_without_network_the_weights_option_is_named(tmp_path, monkeypatch):
    def unreachable(url, path):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"https://\S+inception\S+\.pth.*--weights") as caught:
        load_inception(("2048",), "legacy", None, CPU)
    assert "\n" not in str(caught.value)


def test_what_features_depend_on_changes_the_key(random_weights, tmp_path):
    state = torch.load(random_weights, weights_only=True)
    state["fc.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    made = [
        load_inception(layers, resize, weights, CPU)
        for layers, resize, weights in [
            (("64",), "legacy", random_weights),
            (("64", "192"), "legacy", random_weights),
            (("64",), "clean", random_weights),
            (("64",), "pytorch", random_weights),
            (("64",), "legacy", tmp_path / "other.pth"),
        ]
    ]
    assert len({extractor.key() for extractor in made}) == len(made)
    assert load_inception(("64",), "legacy", random_weights, CPU).key() == made[0].key()
    assert made[0].protocol()["weights_sha256"] == file_sha256(random_weights)
    assert len({extractor.protocol()["resize"] for extractor in made}) == 3
    on_gpu = dataclasses.replace(made[0], device=torch.device("cuda:1"))
    assert on_gpu.key() != made[0].key()


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
    pictures = drawn_pictures(5, (50, 40))
    clip = extractor.clip
    with torch.no_grad():
        inputs = torch.stack([clip.preprocess(to_pil(picture)) for picture in pictures])
        expected = clip.model.encode_image(inputs, normalize=True)
    found = extractor(pictures)["clip"]
    assert extractor.taps == ("clip",) and found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(found.norm(dim=1), torch.ones(5))
    assert (found[0] - found[1]).norm() > 0.01  # it looks at the pictures
    halves = torch.cat([extractor(part)["clip"] for part in pictures.split(2)])
    assert torch.allclose(halves, found, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # as training has it
        assert torch.equal(extractor(pictures)["clip"], found)


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
    pictures = drawn_pictures(2, (224, 224))  # of this size nothing is resized
    network = timm.create_model(SMALL_DINOV2, num_classes=0, img_size=224).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(load_file(dinov2_weights), network)
    network.load_state_dict(state)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network.forward_features((pictures / 255 - mean) / deviation)[:, 0]
    found = extractor(pictures)["dinov2"]
    assert found.shape == (2, 384) and relative(found, expected) < 1e-5
    assert relative(found[:1], found[1:]) > 0.01  # it looks at the pictures
    one = torch.cat([extractor(picture[None])["dinov2"] for picture in pictures])
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
