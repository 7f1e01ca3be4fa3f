"""Inception: features against torch-fidelity's, whatever the batch; weights that must be refused; what names them."""

import dataclasses
import os
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.extractors.inception import load_inception
from tests.inception_files import drawn_images
from toolkit.data.decoding import fit_square
from toolkit.data.images import from_pil
from toolkit.durable import file_sha256
from toolkit.errors import UserError

CPU = torch.device("cpu")
LAYERS = ("64", "192", "768", "2048", "logits")


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_layer_equals_torch_fidelity_in_one_forward(random_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = [layer.replace("logits", "logits_unbiased") for layer in LAYERS]
    reference = FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=random_weights)
    images = drawn_images(3)
    extractor = load_inception(LAYERS[::-1], "legacy", random_weights, CPU)
    assert extractor.taps == tuple(f"inception_{layer}" for layer in LAYERS)
    found = extractor(images)
    for layer, expected in zip(LAYERS, reference(images), strict=True):
        features = found[f"inception_{layer}"]
        assert features.dtype == torch.float32 and features.shape == expected.shape
        assert relative(features, expected) < 5e-6  # measured 6e-7
        assert float(expected.std(dim=0).max()) > 1e-3  # the images do differ in it
    alone = load_inception(("192",), "legacy", random_weights, CPU)(images)
    assert list(alone) == ["inception_192"] and torch.equal(alone["inception_192"], found["inception_192"])


def test_features_of_an_image_do_not_depend_on_the_batch(random_weights):
    extractor = load_inception(LAYERS, "legacy", random_weights, CPU)
    images = drawn_images(4)
    whole = extractor(images)
    for size in (1, 3):
        parts = [extractor(part) for part in images.split(size)]
        for tap in extractor.taps:
            assert relative(torch.cat([part[tap] for part in parts]), whole[tap]) < 5e-6  # measured 9e-7


def test_golden_features_of_real_photos(real_data, partial_weights):
    """8 photos, centre crop, features computed by torch-fidelity in another environment (measured 5e-7)."""
    golden = np.load(real_data / "weights" / "golden_features_food8.npz")
    photos = [Image.open(real_data / "data" / "food101-10" / str(name)).convert("RGB") for name in golden["files"]]
    images = torch.stack([from_pil(fit_square(photo, 128)) for photo in photos])
    found = load_inception(("64", "192", "768"), "legacy", partial_weights, CPU)(images)
    for layer in (64, 192, 768):
        assert relative(found[f"inception_{layer}"], torch.from_numpy(golden[f"f{layer}"])) < 2e-6
    with pytest.raises(UserError, match="end before layer 2048"):
        load_inception(("768", "2048"), "legacy", partial_weights, CPU)


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
