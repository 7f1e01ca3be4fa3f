"""What the networks cost: weights, and multiplications of one picture."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.config import ModelConfig
from toolkit.networks.frozen_features import weightless_backbone
from toolkit.networks.models import Discriminator, Generator, Look, count_parameters


@torch.no_grad()
def count_operations(network: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of one forward pass of `network` on `inputs`: those of its convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2  # it counts multiplications and additions apart


def describe_networks(config: ModelConfig) -> list[str]:
    """A line for each network: weights, and multiply-adds of one picture. Computes and allocates nothing."""
    with torch.device("meta"):
        z, text = torch.zeros(1, config.z_dim), torch.zeros(1, config.cond_dim)
        images = torch.zeros(1, 3, config.resolution, config.resolution)
        backbone = weightless_backbone(config.frozen_backbone) if config.frozen_backbone else None
        networks = {Generator(config): (z, text), Discriminator(config, backbone): (Look(images, text),)}
        costs = [count_operations(network, *inputs) / 1e9 for network, inputs in networks.items()]
    return [
        f"{type(network).__name__}: {count_parameters(network):,} parameters, {cost:,.3f} GMACs a picture"
        for network, cost in zip(networks, costs, strict=True)
    ]
