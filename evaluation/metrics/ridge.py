"""Ridge regression with its strength by leave-one-out, and what it says of images it was not taught."""

from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**k for k in range(-5, 4))
"""Tried, in units of the features' mean eigenvalue."""
TINY = torch.finfo(torch.float64).tiny


class Ridge(NamedTuple):
    """Features [C] -> targets [K] by bias + (x - mean) @ weight, taught on N rows; all float64."""

    mean: Tensor
    weight: Tensor
    """[C, K]."""
    bias: Tensor
    """[K]: the mean of the targets, from which predictions deviate."""
    strength: float
    """The one of STRENGTHS that was taken."""
    residuals: Tensor
    """[N, K]: target minus prediction, on the rows it was taught."""
    root: Tensor
    """[N, R]: the hat matrix, which gives the predictions from the targets, is root @ root.T + 1 / N."""

    def deviations(self, features: Tensor) -> Tensor:
        """[M, C] -> [M, K]: the predictions without `bias`."""
        return (features.double() - self.mean) @ self.weight

    def leverages(self) -> Tensor:
        """[N], below 1: the diagonal of the hat matrix."""
        return (self.root.square().sum(dim=1) + 1 / len(self.root)).clamp(max=1 - 1e-9)

    def left_out(self) -> Tensor:
        """[N, K]: target minus prediction of each row by the regression taught on all others (Allen 1974, PRESS)."""
        return self.residuals / (1 - self.leverages())[:, None]

    def left_out_with(self, rows: Tensor, others: Tensor) -> Tensor:
        """int64 [B] and [B, D] -> [B, D, K]: the same of a row by the regression taught without it and without another.

        The residuals of left-out rows solve (1 - H) e = r, H the hat matrix among them; here two by two.
        """
        leverages = self.leverages()
        between = torch.einsum("br,bdr->bd", self.root[rows], self.root[others]) + 1 / len(self.root)
        own, other = 1 - leverages[rows][:, None], 1 - leverages[others]
        determinant = (own * other - between.square()).clamp(min=1e-18)
        mine, theirs = other / determinant, between / determinant
        return mine[:, :, None] * self.residuals[rows][:, None] + theirs[:, :, None] * self.residuals[others]


def fit(features: Tensor, targets: Tensor) -> Ridge:
    """Features [N, C] and targets [N, K] -> the regression of STRENGTHS with the least leave-one-out squared error.

    Ridge regression (Hoerl & Kennard 1970); the bias bears no penalty. N may be below C, and features may be constant.
    """
    mean, bias = features.mean(dim=0, dtype=torch.float64), targets.mean(dim=0, dtype=torch.float64)
    u, s, v = torch.linalg.svd(features.double() - mean, full_matrices=False)
    wanted = targets.double() - bias
    projected, spectrum = u.T @ wanted, s.square()
    best: tuple[float, Tensor, Ridge] | None = None
    for strength in STRENGTHS:
        penalty = strength * spectrum.sum() / features.shape[1]
        shrink = spectrum / (spectrum + penalty).clamp(min=TINY)
        residuals = wanted - u @ (shrink[:, None] * projected)
        found = Ridge(mean, torch.empty(0), bias, strength, residuals, u * shrink.sqrt())
        error = float(found.left_out().square().sum())
        if best is None or error < best[0]:
            best = error, penalty, found
    assert best is not None  # there are STRENGTHS
    _, penalty, found = best
    inverse = s / (spectrum + penalty).clamp(min=TINY)
    return found._replace(weight=v.T @ (inverse[:, None] * projected))
