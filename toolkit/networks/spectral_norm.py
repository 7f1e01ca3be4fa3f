"""Spectral norm of all layers of a network at once (Miyato et al. 2018, arXiv 1802.05957).

torch's own (`torch.nn.utils.parametrizations.spectral_norm`) recomputes norm and weight of each layer at each forward:
about 30 operations a layer and step, most of a discriminator's. A weight changes once a step, and so here its norm is
found once a step: two matrix-vector products a layer, the rest in one operation for all of them. The singular vectors
are those of torch to 1e-6 (tests/test_spectral_norm.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FIRST_ITERATIONS = 15
"""Power iterations on the initial weights, as in torch."""
TORCH_NAMES = {
    "weight": "parametrizations.weight.original",
    "u": "parametrizations.weight.0._u",
    "v": "parametrizations.weight.0._v",
}
"""Of the same tensors in a state dict of torch's spectral norm, and so in checkpoints made with it."""


class SpectralLayer(nn.Module):
    """What convolution and linear layer have in common: a weight W [outputs, ...] and its largest singular value.

    u [outputs] and v [1, ...] are the singular vectors as far as power iteration has come, sigma = u^T W v the value.
    v has the shape of a row of W so that it takes on W's memory layout: the matrix is then a view, never a copy.
    """

    weight: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor

    def hold_vectors(self) -> None:
        weight = self.weight
        del self.weight  # registered again behind the bias: the order that torch's spectral norm has
        self.weight = nn.Parameter(weight.detach())
        self.register_buffer("u", torch.zeros(len(weight)))
        self.register_buffer("v", F.normalize(torch.randn_like(weight[:1]).flatten(), dim=0).view_as(weight[:1]))
        self.register_buffer("sigma", torch.ones(()))
        self.normalised: Tensor | None = None
        self._views: tuple[Tensor, ...] = ()

    def views(self) -> tuple[Tensor, ...]:
        """(W as a matrix, its transpose, v as a vector, u as a column shaped like W), made once."""
        if not self._views:
            matrix, vector = (_flat(tensor.detach()) for tensor in (self.weight, self.v))
            self._views = matrix, matrix.t(), vector[0], self.u.view(-1, *[1] * (self.weight.ndim - 1))
        return self._views

    def _apply(self, *arguments: Any, **options: Any) -> nn.Module:
        self._views = ()  # what is moved or recast has other memory
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": (), "normalised": None}  # copies hold no views of the original

    def _load_from_state_dict(self, state: dict, prefix: str, *others: Any) -> None:
        """Takes torch's names too."""
        for name, theirs in TORCH_NAMES.items():
            if prefix + theirs in state:
                state[prefix + name] = state.pop(prefix + theirs)
        if (v := state.get(prefix + "v")) is not None and v.ndim == 1 and v.numel() == self.v.numel():
            state[prefix + "v"] = v.reshape(self.v.shape)
        if prefix + "sigma" not in state and prefix + "weight" in state and prefix + "v" in state:
            weight, v = (state[prefix + name].flatten(1) for name in ("weight", "v"))
            if weight.shape[1:] == v.shape[1:]:
                state[prefix + "sigma"] = (weight @ v[0]) @ state[prefix + "u"]
        super()._load_from_state_dict(state, prefix, *others)


class SpectralConv2d(SpectralLayer, nn.Conv2d):
    """Convolution whose weight, as a matrix, has largest singular value 1."""

    padding: tuple[int, ...]

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.hold_vectors()

    def forward(self, x: Tensor) -> Tensor:
        assert self.normalised is not None  # by SpectralNorms.normalise
        return F.conv2d(x, self.normalised, self.bias, padding=self.padding)


class SpectralLinear(SpectralLayer, nn.Linear):
    """Linear layer whose weight has largest singular value 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.hold_vectors()

    def forward(self, x: Tensor) -> Tensor:
        assert self.normalised is not None  # by SpectralNorms.normalise
        return F.linear(x, self.normalised, self.bias)


class SpectralNorms:
    """The spectral layers below a network, in step."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = [layer for layer in network.modules() if isinstance(layer, SpectralLayer)]

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Power iteration with the present weights: u = W v / |W v|, v = W^T u / |W^T u|, sigma = |W^T u|."""
        matrices, transposed, rights, _ = zip(*(layer.views() for layer in self.layers), strict=True)
        lefts, sigmas = [layer.u for layer in self.layers], [layer.sigma for layer in self.layers]
        for _ in range(times):
            for matrix, vector, left in zip(matrices, rights, lefts, strict=True):
                torch.mv(matrix, vector, out=left)
            torch._foreach_div_(lefts, _lengths(lefts))
            for matrix, vector, right in zip(transposed, lefts, rights, strict=True):
                torch.mv(matrix, vector, out=right)
            torch._foreach_copy_(sigmas, _lengths(rights))
            torch._foreach_div_(rights, sigmas)

    def normalise(self) -> None:
        """Give every layer its W / sigma, with W's gradient. Before each forward pass of the network."""
        vectors = [(layer.views()[3], layer.v, layer.sigma) for layer in self.layers]
        found = _Normalised.apply(vectors, *(layer.weight for layer in self.layers))
        for layer, weight in zip(self.layers, found, strict=True):
            layer.normalised = weight


class _Normalised(torch.autograd.Function):
    """W / sigma(W) for many W at once. With sigma = u^T W v, of which u and v count as constant:

    dL/dW = (g - <g, W / sigma> u v^T) / sigma, where g = dL/d(W / sigma)                     (Miyato et al., eq. 12)
    """

    @staticmethod
    def forward(ctx: Any, vectors: list[tuple[Tensor, Tensor, Tensor]], *weights: Tensor) -> tuple[Tensor, ...]:
        normalised = torch._foreach_div(weights, [sigma for _, _, sigma in vectors])
        ctx.vectors = vectors
        ctx.save_for_backward(*normalised)
        return tuple(normalised)

    @staticmethod
    @once_differentiable  # R1 differentiates D twice by its images, but W / sigma by W only once
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        lefts, rights, sigmas = zip(*ctx.vectors, strict=True)
        shares = [product.sum() for product in torch._foreach_mul(gradients, ctx.saved_tensors)]
        found = torch._foreach_sub(gradients, torch._foreach_mul(torch._foreach_mul(lefts, shares), rights))
        torch._foreach_div_(found, sigmas)
        return (None, *map(_as_it_lies, found, ctx.saved_tensors))


def _flat(tensor: Tensor) -> Tensor:
    """[A, ...] -> [A, B], always a view: the elements of a row in the order in which they lie in memory."""
    if tensor.ndim == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)  # channels_last
    return tensor.view(len(tensor), -1)


def _as_it_lies(gradient: Tensor, like: Tensor) -> Tensor:
    """With the very strides of the weight, which DDP's buckets expect: those of sides of length 1 are arbitrary."""
    if gradient.stride() == like.stride():
        return gradient
    if gradient.is_contiguous() and like.is_contiguous():
        return gradient.as_strided(like.shape, like.stride())
    return torch.empty_like(like).copy_(gradient)


def _lengths(vectors: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Their norms, never 0."""
    lengths = torch._foreach_norm(vectors)
    torch._foreach_clamp_min_(lengths, 1e-12)
    return lengths
