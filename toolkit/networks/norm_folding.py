"""Batch norms of a network that is not trained, folded into the convolutions before them."""

import torch
from torch import nn

FOLDABLE = ("EfficientNet", "DepthwiseSeparableConv", "InvertedResidual", "ConvBnAct")
"""timm's modules whose children stand in the order of their forward pass."""


def fold_batch_norms(network: nn.Module) -> None:
    """Batch norms of a frozen network into the convolutions before them, in place: a fifth to a third of its time.

    Only where a module holds a convolution and, as the next of its children, a batch norm of as many channels, timm's
    with an activation in it. What runs between them, if anything did, would be lost: so the order of the children has
    to be that of the forward pass, as it is in timm's MobileNet-like blocks; other networks stay as they are.
    """
    for module in list(network.modules()):
        if type(module).__name__ not in FOLDABLE:
            continue
        children = list(module.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.num_features == conv.out_channels and norm.track_running_stats and norm.affine:
                setattr(module, name, _folded(conv, norm))


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of the norm: timm's activation, or nothing. w (x - m) / s + b becomes the convolution's own."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    before = torch.zeros_like(scale) if conv.bias is None else conv.bias
    with torch.no_grad():
        conv.weight.mul_(scale[:, None, None, None])
        conv.bias = nn.Parameter((norm.bias + (before - norm.running_mean) * scale).detach(), requires_grad=False)
    act, drop = (getattr(norm, name, nn.Identity()) for name in ("act", "drop"))
    return act if isinstance(drop, nn.Identity) else nn.Sequential(drop, act)
