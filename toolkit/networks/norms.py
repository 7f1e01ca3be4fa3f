"""G's norms, whose scale and shift come from the text and, if asked for, from the noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Affine = tuple[Tensor, Tensor]
"""Scale and shift of a norm, [N, C, 1, 1] each."""
EPSILON = 1e-8
"""Added to the mean square before its root (Karras et al. 2018, sect. 4.2)."""


class BatchNorm(nn.BatchNorm2d):
    """torch's without affine and without its count of batches, which only an average over all of them needs."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, self.momentum, self.eps)


class RootMeanSquareNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + 1e-8), the mean over `dimensions` of [N, C, H, W].

    Over (1, 2, 3) RMSNorm of a whole image (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4), over (1,) pixel norm
    (Karras et al. 2018, arXiv 1710.10196, sect. 4.2). Squares are summed in fp32: fp16 ends at 65,504.
    """

    def __init__(self, dimensions: tuple[int, ...]) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=self.dimensions, keepdim=True, dtype=kind)
        count = torch.Size(x.shape[i] for i in self.dimensions).numel()
        # Cast after the product: its backward pass sums over all of `dimensions`, in fp32 too.
        return (x * torch.rsqrt(length.square() / count + EPSILON)).to(x.dtype)


def make_norm(kind: str, channels: int) -> nn.Module:
    """A norm of [N, channels, H, W] without affine: ModelConfig.g_norm.

    Group norm with one channel a group is instance norm, the one of AdaIN (Huang & Belongie 2017, arXiv 1703.06868).
    """
    if kind == "batch":
        return BatchNorm(channels, affine=False)
    if kind in ("rms", "pixel"):
        return RootMeanSquareNorm((1, 2, 3) if kind == "rms" else (1,))
    return nn.GroupNorm(channels if kind == "instance" else min(8, channels), channels, affine=False)


class ConditionalNorm(nn.Module):
    """Normalise, scale and shift by a vector, ReLU: y = max(0, (1 + gamma(v)) * norm(x) + beta(v)).

    Conditional batch norm (de Vries et al. 2017, arXiv 1707.00683) for `kind` 'batch'. v are features of the text
    that the norms of G share (`Generator.text`, `Modulation`); the last layer of gamma and beta, here, is their own.
    """

    def __init__(self, channels: int, width: int, kind: str) -> None:
        super().__init__()
        self.channels = channels
        self.norm = make_norm(kind, channels)
        self.gamma_beta = nn.Linear(width, 2 * channels)
        nn.init.normal_(self.gamma_beta.weight, std=0.02)
        nn.init.zeros_(self.gamma_beta.bias)

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        scale, shift = affine
        return F.relu(scale * self.norm(x) + shift)


class Modulation(nn.Module):
    """Scale and shift of all G's norms, from the text features and, with `noise`, from z too.

    With `noise` all norms read [text features, z] (skip-z: Brock et al. 2019, arXiv 1809.11096, sect. 3 and app. B).
    With `own_layers` each block has a layer of its own, SiLU(W text + b), before its two norms, in the spirit of
    DF-GAN's deep fusion (Tao et al. 2022, arXiv 2008.05865, sect. 3.3); the last norm reads the shared features.
    """

    identity: Tensor

    def __init__(self, norms: list[ConditionalNorm], text_width: int, own_layers: bool, noise: bool) -> None:
        super().__init__()
        blocks = len(norms) // 2 if own_layers else 0
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(text_width, text_width), nn.SiLU()) for _ in range(blocks))
        self.noise = noise
        self.reset_identity(norms)

    def reset_identity(self, norms: list[ConditionalNorm]) -> None:
        """1 for every gamma, 0 for every beta, which they are added to: the one tensor that no file holds."""
        values = torch.cat([torch.cat([torch.ones(norm.channels), torch.zeros(norm.channels)]) for norm in norms])
        self.register_buffer("identity", values, persistent=False)

    def forward(self, norms: list[ConditionalNorm], text: Tensor, z: Tensor) -> list[Affine]:
        """Text features [N, W] and z [N, z_dim] -> the affine of each norm, in order."""
        groups = self.sharing(norms)
        sizes = [2 * sum(norm.channels for norm in group) for group in groups]
        found: list[Affine] = []
        for group, vector, identity in zip(groups, self.vectors(text, z), self.identity.split(sizes), strict=True):
            found += affines(group, vector, identity)
        return found

    def vectors(self, text: Tensor, z: Tensor) -> list[Tensor]:
        """What each of the groups of `sharing` reads."""
        texts = [*(layer(text) for layer in self.layers), text]
        return [torch.cat([text, z], dim=1) for text in texts] if self.noise else texts

    def sharing(self, norms: list[ConditionalNorm]) -> list[list[ConditionalNorm]]:
        """The norms in groups that read the same vector: the two of each block and the last one, or all."""
        if not self.layers:
            return [norms]
        return [*(norms[2 * i : 2 * i + 2] for i in range(len(self.layers))), norms[-1:]]


def affines(norms: list[ConditionalNorm], vector: Tensor, identity: Tensor) -> list[Affine]:
    """The affine of each norm, in order, for what they read [N, V]: one matrix product for all of them.

    `identity` [all gammas and betas] is what gamma and beta are added to.
    """
    layers = [norm.gamma_beta for norm in norms]
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return in_pairs(F.linear(vector, weight, bias + identity), [norm.channels for norm in norms])


def in_pairs(found: Tensor, channels: list[int]) -> list[Affine]:
    """[N, all gammas and betas] -> (scale, shift) of each norm, which have so many channels."""
    parts = found[:, :, None, None].split([count for count in channels for _ in range(2)], dim=1)
    return list(zip(parts[::2], parts[1::2], strict=True))
