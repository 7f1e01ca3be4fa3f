"""Parameters and multiply-adds of G and D. To be replaced by toolkit/networks/cost.py once that is there."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from toolkit.config import ModelConfig
from toolkit.networks.models import Discriminator, Generator, Look, count_parameters


def costs(config: ModelConfig) -> dict[str, dict[str, int]]:
    """{"parameters": {"G", "D"}, "multiply_adds": {"G", "D"}}, the latter a picture in one forward."""
    with torch.random.fork_rng(devices=[]):
        networks = {"G": Generator(config).eval(), "D": Discriminator(config).eval()}

    def forward(name: str, count: int) -> None:
        text = torch.zeros(count, config.cond_dim)
        if name == "G":
            networks["G"](torch.zeros(count, config.z_dim), text)
        else:
            networks["D"](Look(torch.zeros(count, 3, config.resolution, config.resolution), text))

    # Twice one picture less than two: what is done once a step, such as spectral norms, is no cost of a picture.
    each = {name: _flops(forward, name, 2) - _flops(forward, name, 1) for name in networks}
    return {
        "parameters": {name: count_parameters(network) for name, network in networks.items()},
        "multiply_adds": {name: flops // 2 for name, flops in each.items()},
    }


def _flops(forward, name: str, count: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        forward(name, count)
    return counted.get_total_flops()
