"""Fréchet distance between two Gaussians, from features. Pure functions of tensors, float64 throughout."""

from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.errors import UserError


class Statistics(NamedTuple):
    """The Gaussian fitted to N feature vectors."""

    mean: Tensor
    """float64 [C]."""
    covariance: Tensor
    """float64 [C, C], unbiased (N - 1)."""
    count: int


def statistics(features: Tensor) -> Statistics:
    """Features [N, C] -> mean and covariance in float64. UserError if N < 2 or a value is not finite."""
    if len(features) < 2:
        raise UserError(f"{len(features)} picture(s): a covariance needs at least 2")
    if not features.isfinite().all():
        raise UserError("the features hold NaN or infinity; is the weights file damaged?")
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2, never below 0.

    The formula is Dowson & Landau 1982 ("The Fréchet distance between multivariate normal distributions"), FID is
    Heusel et al. 2017 (arXiv:1706.08500, eq. 6). With S1 = F1 F1^T and S2 = F2 F2^T the last trace is the sum of the
    singular values of F1^T F2: no root of a non-symmetric product, no small constant added, and right for covariances
    without full rank (N <= C). Singular values carry an error of 1e-16 of the largest one, where the root of an
    eigenvalue would carry 1e-8.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of width {len(a.mean)} and {len(b.mean)} have no distance")
    shared = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(float(distance), 0.0)  # equal sets end at -1e-13


def _factor(covariance: Tensor) -> Tensor:
    """F [C, R] with F F^T = covariance, R its rank."""
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:  # three times faster than the eigenvectors
        return triangle
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()
