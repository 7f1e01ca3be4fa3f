"""Self-attention over the positions of a feature map, for both networks."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

Convolution = Callable[[int, int, int], nn.Module]
"""(inputs, outputs, kernel) -> a convolution: nn.Conv2d in G, SpectralConv2d in D."""


class SelfAttention(nn.Module):
    """x + gamma W o, o_j = sum_i softmax_i(f(x_i) . g(x_j)) h(x_i) over all positions i (SAGAN).

    Zhang et al. 2019, arXiv 1805.08318, eq. 1 to 3: f, g (C/8 channels), h (C/2) and W are 1x1 convolutions, gamma is
    learnt and starts from 0. Matrix products and softmax one by one, not a fused kernel: R1 differentiates them twice.
    Memory grows with the fourth power of the side: [N, S^2, S^2] in fp32.
    """

    def __init__(self, channels: int, convolution: Convolution) -> None:
        super().__init__()
        narrow, middle = max(1, channels // 8), max(1, channels // 2)
        self.query = convolution(channels, narrow, 1)
        self.key = convolution(channels, narrow, 1)
        self.value = convolution(channels, middle, 1)
        self.out = convolution(middle, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        kind = torch.promote_types(x.dtype, torch.float32)
        # From fp16 inputs the products may exceed 65,504, and the softmax of an infinity is not a number.
        exact = contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # meta has none
        with exact:
            weights = (query.to(kind).transpose(1, 2) @ key.to(kind)).softmax(dim=2)
        seen = (value @ weights.transpose(1, 2).to(value.dtype)).unflatten(2, x.shape[2:])
        return x + (self.gamma * self.out(seen)).to(x.dtype)  # gamma's gradient, a sum over everything, stays fp32
