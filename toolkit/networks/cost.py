"""What the networks cost: weights, and multiplications of one image."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.networks.architecture import ModelConfig
from toolkit.networks.models import Discriminator, Generator, Look, count_parameters


class Cost(NamedTuple):
    """Of one network."""

    parameters: int
    """That are trained: a frozen backbone has none."""
    multiply_adds: int
    """In one forward pass over one image."""


@torch.no_grad()
def count_operations(network: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of one forward pass of `network` on `inputs`: those of its convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2  # it counts multiplications and additions apart


def costs(config: ModelConfig) -> dict[str, Cost]:
    """Of "G" and "D", one image drawn and judged. Computes and allocates nothing."""
    with torch.device("meta"):
        z, text = torch.zeros(1, config.z_dim), torch.zeros(1, config.cond_dim)
        images = torch.zeros(1, 3, config.resolution, config.resolution)
        G, D = Generator(config), Discriminator(config)
        return {
            "G": Cost(count_parameters(G), count_operations(G, z, text)),
            "D": Cost(count_parameters(D), count_operations(D, Look(images, text))),
        }


def describe_networks(config: ModelConfig) -> list[str]:
    """A line for each network."""
    names = {"G": "Generator", "D": "Discriminator"}
    return [
        f"{names[name]}: {cost.parameters:,} parameters, {cost.multiply_adds / 1e9:,.3f} GMACs an image"
        for name, cost in costs(config).items()
    ]
