"""The perceptual distance, with random weights: its plumbing, not its judgement."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from toolkit.errors import UserError
from toolkit.networks.perceptual import LAYERS, PerceptualDistance


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    features = torchvision.models.vgg16(init_weights=False).features
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


def test_distance_is_zero_for_equal_images_and_per_sample(weights):
    distance = PerceptualDistance(weights)
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert distance(x, x).tolist() == [0.0, 0.0]
    both = distance(x, y)
    assert both.shape == (2,) and (both > 0).all()
    torch.testing.assert_close(both[1:], distance(x[1:], y[1:]))


def test_gradient_reaches_the_image_and_the_layers_are_activations(weights):
    distance = PerceptualDistance(weights)
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(x, torch.ones(1, 3, 32, 32)).sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in distance.parameters())
    assert all(isinstance(distance.features[i], torch.nn.ReLU) for i in LAYERS)


def test_other_files_are_one_line(tmp_path):
    for name in ("missing.pth", "other.safetensors"):
        if name.startswith("other"):
            save_file({"w": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(UserError, match="--perceptual_weights"):
            PerceptualDistance(tmp_path / name)
