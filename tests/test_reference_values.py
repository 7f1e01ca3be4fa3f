"""The published values of CIFAR-10, where its images and the real Inception weights are (the check of every port).

`TOOLKIT_CIFAR10=DIR TOOLKIT_INCEPTION=FILE pytest tests/test_reference_values.py`: DIR as torchvision keeps it
(cifar-10-batches-py), FILE as torch-fidelity downloads it. A minute or two on a GPU, hours on a CPU.
"""

import os
from pathlib import Path

import pytest
import torch

from evaluation.fid import FidOptions, fid
from evaluation.inception_score import InceptionScoreOptions, score

DATA, WEIGHTS = (os.environ.get(name) for name in ("TOOLKIT_CIFAR10", "TOOLKIT_INCEPTION"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (DATA and WEIGHTS), reason="TOOLKIT_CIFAR10 and TOOLKIT_INCEPTION name no data and weights"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> dict[str, Path]:
    from torchvision.datasets import CIFAR10

    found = {}
    for name in ("train", "test"):
        found[name] = tmp_path_factory.mktemp(name)
        for i, (image, _) in enumerate(CIFAR10(DATA, train=name == "train")):
            image.save(found[name] / f"{i:05d}.png")
    return found


def test_fid_of_training_and_test_images(sides):
    """3.1508 by the first, TensorFlow, code; 3.1525 by its port to PyTorch."""
    report = fid(FidOptions(real=str(sides["train"]), fake=str(sides["test"]), weights=Path(WEIGHTS), batch=256))
    assert report["fid"] == pytest.approx(3.15, abs=0.01)


def test_inception_score_of_training_images(sides):
    """11.24 +- 0.20 in the literature, 11.23678 +- 0.0951 by torch-fidelity."""
    report = score(InceptionScoreOptions(fake=str(sides["train"]), weights=Path(WEIGHTS), batch=256))
    assert report["inception_score"] == pytest.approx(11.24, abs=0.02)
