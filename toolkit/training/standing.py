"""Batch-norm statistics of an averaged G's own: an average of statistics is that of no network."""

import contextlib

import torch
from torch import Tensor, nn

from toolkit import draws
from toolkit.data.shard_reader import DamagedSample, ShardSet
from toolkit.networks.norms import BatchNorm

AT_ONCE = 64
"""Images of one forward pass."""


class StandingInputs:
    """What an averaged G is shown to find its statistics: noise, and captions as often as the dataset has them."""

    def __init__(self, shards: ShardSet, count: int, z_dim: int, seed: int) -> None:
        self.z = torch.randn(count, z_dim, generator=draws.generator(seed, "standing noise"))
        """float32 [N, z_dim]."""
        found: list[Tensor] = []
        for number in draws.permutation(len(shards), seed, 0, "standing captions")[:count].tolist():
            with contextlib.suppress(DamagedSample):  # named and counted when its own turn comes
                vectors = shards.read_texts(number).vectors
                found.append(vectors[draws.integer(len(vectors), seed, "standing caption", number)])
        rows = torch.arange(count) % len(found)
        self.text = torch.stack(found)[rows]
        """float32 [N, E], unit length."""


@torch.no_grad()
def stand(network: nn.Module, inputs: StandingInputs, text_share: float = 1.0) -> None:
    """Replace the running statistics of `network` by those of its own activations: a function of weights and inputs.

    Averaged weights spread less than the weights they average, so an average of running variances is too large (4 to
    17 % here, and more the longer the average): images lose contrast. Standing statistics of BigGAN (Brock et al.
    2019, arXiv 1809.11096, sect. 3.1): forward passes in training mode, all counted alike. What is no batch norm is
    left alone. In float32, on the network's device.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    device = next(network.parameters()).device
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.train()
        for k, (z, text) in enumerate(zip(inputs.z.split(AT_ONCE), inputs.text.split(AT_ONCE), strict=True)):
            for norm in norms:
                norm.momentum = 1 / (k + 1)  # all batches count alike, and nothing from before
            network(z.to(device), text_share * text.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
