"""G for drawing images only: the same function in fewer operations."""

import copy

import torch
from torch import Tensor, nn

from toolkit.networks.models import Generator
from toolkit.networks.norms import Affine, BatchNorm, ConditionalNorm, Modulation, in_pairs


class FoldedGenerator(nn.Module):
    """A trained G, its batch norms' statistics folded into the affines, in channels_last.

    (1 + gamma) (x - mean) / std + beta = scale x + shift; scale and shift are linear in what the norms read, and so one
    matrix gives those of all norms that read the same. Equal to G in evaluation mode up to rounding. All other weights
    are shared with G, not copied; what is trained afterwards shows only in part.
    """

    def __init__(self, G: Generator) -> None:
        super().__init__()
        G.eval().to(memory_format=torch.channels_last).requires_grad_(False)
        shared = {id(tensor): tensor for tensor in (*G.parameters(), *G.buffers())}
        self.G = copy.deepcopy(G, shared)
        self.G.add_module("modulation", _FoldedModulation(self.G.modulation, self.G.norms()))
        for module in list(self.G.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ConditionalNorm):
                    module.add_module(name, _FoldedNorm(child))
        self.requires_grad_(False).eval()

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        """z [N, z_dim] normal, text [N, cond_dim] unit length -> images [N, 3, R, R] in [-1, 1]."""
        return self.G(z, text)


class _FoldedModulation(nn.Module):
    """`Modulation` with the matrix of each group of norms made once."""

    def __init__(self, modulation: Modulation, norms: list[ConditionalNorm]) -> None:
        super().__init__()
        groups = modulation.sharing(norms)
        self.modulation = modulation
        self.channels = [[norm.channels for norm in group] for group in groups]
        self.affines = nn.ModuleList(_folded(group) for group in groups)

    def forward(self, norms: list[nn.Module], text: Tensor, z: Tensor) -> list[Affine]:
        found: list[Affine] = []
        for vector, layer, channels in zip(self.modulation.vectors(text, z), self.affines, self.channels, strict=True):
            found += in_pairs(layer(vector), channels)
        return found


class _FoldedNorm(nn.Module):
    """`ConditionalNorm` for these affines; batch norm itself is in scale and shift."""

    def __init__(self, norm: ConditionalNorm) -> None:
        super().__init__()
        self.norm = nn.Identity() if isinstance(norm.norm, BatchNorm) else norm.norm

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        scale, shift = affine
        return torch.addcmul(shift, self.norm(x), scale).relu_()


def _folded(norms: list[ConditionalNorm]) -> nn.Linear:
    """The linear layer that gives scale and shift of all of them."""
    weights, biases = zip(*(_folded_norm(norm) for norm in norms), strict=True)
    folded = {"weight": torch.cat(weights), "bias": torch.cat(biases)}
    layer = nn.Linear(folded["weight"].shape[1], len(folded["weight"]), device="meta")
    layer.load_state_dict(folded, assign=True)
    return layer


def _folded_norm(norm: ConditionalNorm) -> tuple[Tensor, Tensor]:
    """Weight [2C, V] and bias [2C] of the linear layer that gives scale and shift."""
    weight, bias = norm.gamma_beta.weight.detach().double(), norm.gamma_beta.bias.detach().double()
    (by_scale, by_shift), (scale, shift) = weight.chunk(2), bias.chunk(2)
    scale = scale + 1
    if isinstance(norm.norm, BatchNorm):
        mean, variance = norm.norm.running_mean.double(), norm.norm.running_var.double()
        std = (variance + norm.norm.eps).sqrt()
        by_scale, scale = by_scale / std[:, None], scale / std
        by_shift, shift = by_shift - mean[:, None] * by_scale, shift - mean * scale
    kind = norm.gamma_beta.weight.dtype
    return torch.cat([by_scale, by_shift]).to(kind), torch.cat([scale, shift]).to(kind)
