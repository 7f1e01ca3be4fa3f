"""Inception's input beside the code whose conventions it follows: torch-fidelity, clean-fid, pytorch-fid."""

import numpy as np
import pytest
import torch

from evaluation.extractors.resize import NAMES, bicubic, network_input, resized
from tests.inception_files import drawn_images

SIZES = [(32, 32), (64, 64), (128, 96), (97, 250), (299, 128), (400, 512), (1, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_legacy_is_torch_fidelitys_bit_for_bit(size):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = drawn_images(2, size)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert torch.equal(resized(images, "legacy"), theirs)
    assert torch.equal(network_input(images, "legacy"), (theirs - 128) / 128)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("output", [(299, 299), (224, 224)])
def test_clean_is_clean_fids(size, output):
    make_resizer = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed").make_resizer
    images = drawn_images(2, size)
    resize = make_resizer("PIL", False, "bicubic", output)
    theirs = [resize(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1) for image in images]
    ours = bicubic(images, output).numpy()
    assert np.abs(ours - np.stack(theirs)).max() <= 2 * np.spacing(np.float32(255))
    if output == (299, 299):
        assert np.array_equal(ours, resized(images, "clean").numpy())


def test_clean_does_not_leave_the_range_of_images():
    edges = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edges[..., 4:] = 255  # bicubic overshoots on either side of it
    found = bicubic(edges, (299, 299))
    assert (float(found.min()), float(found.max())) == (0, 255)


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_is_pytorch_fids(size):
    """Its forward: images in 0..1, bilinear, then 2 x - 1."""
    inception = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    network = inception.InceptionV3.__new__(inception.InceptionV3)
    torch.nn.Module.__init__(network)  # without its download
    network.resize_input = network.normalize_input = True
    network.blocks, network.output_blocks, network.last_needed_block = [torch.nn.Identity()], [0], 0
    images = drawn_images(2, size)
    theirs = network(images.float() / 255)[0]
    assert (network_input(images, "pytorch") - theirs).abs().max() < 2e-6


@pytest.mark.parametrize("resize", NAMES)
def test_images_of_299_keep_their_pixels(resize):
    images = drawn_images(2, (299, 299))
    assert torch.equal(resized(images, resize), images.float())


@pytest.mark.parametrize("size", [(64, 64), (512, 512)])
def test_the_conventions_differ(size):
    found = [resized(drawn_images(1, size), resize) for resize in NAMES]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 0.5
