"""Pure functions of logits, features and images, each per sample [N]; the caller takes the mean."""

import torch
import torch.nn.functional as F
from torch import Tensor

Split = tuple[int, float]
"""How many of the columns are D's own, and the weight of the mean of the others."""


def over_columns(terms: Tensor, split: Split | None) -> Tensor:
    """[N, S] -> [N]: the mean; with `split` (own, w): (1 - w) mean of D's own columns + w mean of the frozen ones."""
    if split is None:
        return terms.mean(dim=1)
    own, weight = split
    return (1 - weight) * terms[:, :own].mean(dim=1) + weight * terms[:, own:].mean(dim=1)


def discriminator_loss(real: Tensor, fake: Tensor, loss: str, split: Split | None = None) -> Tensor:
    """D on real images and generated ones, logits [N, S] each -> [N].

    hinge: max(0, 1 - D(x)) + max(0, 1 + D(G(z)))                           Lim & Ye 2017, arXiv 1705.02894
    nonsaturating: softplus(-D(x)) + softplus(D(G(z)))                      Goodfellow et al. 2014, arXiv 1406.2661
    relativistic: softplus(-(D(x) - D(G(z)))), row i of one with row i of the other
                                    Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2025, arXiv 2501.05441
    """
    if loss == "hinge":
        return over_columns(F.relu(1 - real) + F.relu(1 + fake), split)
    if loss == "nonsaturating":
        return over_columns(F.softplus(-real) + F.softplus(fake), split)
    return over_columns(F.softplus(fake - real), split)


def generator_loss(fake: Tensor, real: Tensor | None, loss: str, split: Split | None = None) -> Tensor:
    """G on its own images, logits [N, S] -> [N]; `real` for the relativistic loss only.

    hinge: -D(G(z)); nonsaturating: softplus(-D(G(z))); relativistic: softplus(-(D(G(z)) - D(x))).
    """
    if loss == "hinge":
        return -over_columns(fake, split)
    if loss == "nonsaturating":
        return over_columns(F.softplus(-fake), split)
    assert real is not None
    return over_columns(F.softplus(real - fake), split)


def mismatch_loss(matched: Tensor, mismatched: Tensor, loss: str, split: Split | None = None) -> Tensor:
    """The same real image must fit its own caption better than another one, [N, S] each -> [N].

    Hinge: max(0, 1 - (D(x, c) - D(x, c'))); the others: softplus(-(D(x, c) - D(x, c'))). The matching-aware
    discriminator (Reed et al. 2016, arXiv 1605.05396) counts (x, c') among the fakes; with the hinge that pulls real
    images to one of its flat ends, where D stops telling real from fake.
    The difference leaves the level of the logits to real and fake.
    """
    margin = matched - mismatched
    return over_columns(F.relu(1 - margin) if loss == "hinge" else F.softplus(-margin), split)


def match_loss(scores: Tensor, taken: Tensor) -> Tensor:
    """Cross-entropy of the own caption, column 0 of `scores` [N, 1 + K], among those not `taken` [N, K] -> [N].

    InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) over captions, as the matching term of XMC-GAN (Zhang et al.
    2021, arXiv 2101.04702); there the others are the batch's captions, here those drawn for the step: the loss is the
    same however the batch is split. `taken`: captions that would be right too.
    """
    others = scores[:, 1:].masked_fill(taken, float("-inf"))
    return torch.logsumexp(torch.cat([scores[:, :1], others], dim=1), dim=1) - scores[:, 0]


def blind_match_loss(taken: Tensor) -> Tensor:
    """The same for a head that gives all captions one score, [N]: ln(1 + number of captions that are not `taken`)."""
    return (1 + (~taken).sum(dim=1)).float().log()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """1/2 |d logit / d image|^2 [N]: R1 on real images, R2 on generated ones; times its weight by the caller.

    Mescheder et al. 2018, arXiv 1801.04406, eq. 9 and 10. logits [N, S] (their mean over the scales is D's output),
    images [N, 3, H, W] with requires_grad, both fp32.
    """
    (gradient,) = torch.autograd.grad(logits.mean(dim=1).sum(), images, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)) / 2


def lecam_penalty(real: Tensor, fake: Tensor, anchors: tuple[float, float]) -> Tensor:
    """(D(x) - a_fake)^2 + (D(G(z)) - a_real)^2, logits [N, S] -> [N] (Tseng et al. 2021, arXiv 2104.03310).

    `anchors` (a_real, a_fake) are running means of D's logits on real and on generated images.
    """
    of_real, of_fake = anchors
    return ((real - of_fake).square() + (fake - of_real).square()).mean(dim=1)


def feature_matching(real: tuple[Tensor, ...], fake: tuple[Tensor, ...]) -> Tensor:
    """|mean real features - mean fake features|_1, averaged over blocks (Salimans et al. 2016, arXiv 1606.03498)."""
    return torch.stack([(r.mean(dim=0) - f.mean(dim=0)).abs().mean() for r, f in zip(real, fake, strict=True)]).mean()
