"""Pure functions of logits, features and images, each per sample [N]; the caller takes the mean."""

import torch
import torch.nn.functional as F
from torch import Tensor


def real_loss(logits: Tensor, loss: str) -> Tensor:
    """D on real pictures, logits [N, S] -> [N]. Hinge: max(0, 1 - D) (Lim & Ye 2017); non-saturating: softplus(-D)."""
    return (F.relu(1 - logits) if loss == "hinge" else F.softplus(-logits)).mean(dim=1)


def fake_loss(logits: Tensor, loss: str) -> Tensor:
    """D on negatives, logits [N, S] -> [N]. Hinge: max(0, 1 + D); non-saturating: softplus(D) (Goodfellow 2014)."""
    return (F.relu(1 + logits) if loss == "hinge" else F.softplus(logits)).mean(dim=1)


def generator_loss(logits: Tensor, loss: str) -> Tensor:
    """G on its own pictures, logits [N, S] -> [N]. Hinge: -D; non-saturating: softplus(-D)."""
    return (-logits if loss == "hinge" else F.softplus(-logits)).mean(dim=1)


def mismatch_loss(matched: Tensor, mismatched: Tensor, loss: str) -> Tensor:
    """The same real picture must fit its own caption better than another one, [N, S] each -> [N].

    Hinge: max(0, 1 - (D(x, c) - D(x, c'))); non-saturating: softplus(-(D(x, c) - D(x, c'))). The matching-aware
    discriminator (Reed et al. 2016, arXiv 1605.05396) counts (x, c') among the fakes; with the hinge that pulls real
    pictures to one of its flat ends, where D stops telling real from fake.
    The difference leaves the level of the logits to real and fake.
    """
    return real_loss(matched - mismatched, loss)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1 [N]: 1/2 |d logit / d image|^2 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9); times lambda by the caller.

    logits [N, S] (their mean over the scales is D's output), images [N, 3, H, W] with requires_grad, both fp32.
    """
    (gradient,) = torch.autograd.grad(logits.mean(dim=1).sum(), images, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)) / 2


def feature_matching(real: tuple[Tensor, ...], fake: tuple[Tensor, ...]) -> Tensor:
    """|mean real features - mean fake features|_1, averaged over blocks (Salimans et al. 2016, arXiv 1606.03498)."""
    return torch.stack([(r.mean(dim=0) - f.mean(dim=0)).abs().mean() for r, f in zip(real, fake, strict=True)]).mean()
