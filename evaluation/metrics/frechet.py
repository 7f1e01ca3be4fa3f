"""Fréchet distance between two Gaussians, from features. Pure functions of tensors, float64 throughout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.metrics.features import check_features
from toolkit.errors import UserError

CHUNK = 4096
"""Rows turned into float64 at a time: 64 MiB of 2048 features, whatever N."""
ROOT_ERROR = 1e-9
"""Of the two traces: where the roots of eigenvalues may be off by more, singular values take over."""


@dataclass(frozen=True)
class Statistics:
    """The Gaussian fitted to N feature vectors."""

    mean: Tensor
    """float64 [C]."""
    covariance: Tensor
    """float64 [C, C], unbiased (N - 1)."""
    count: int
    root: Tensor | None = None
    """float64 [N, C] with root^T root = covariance, where N <= C: the covariance has no full rank then."""


def statistics(features: Tensor) -> Statistics:
    """Features [N, C] -> mean and covariance in float64. UserError if N < 2 or a value is not finite."""
    check_features(features, fewest=2, metric="a covariance")
    count, width = features.shape
    mean = sum(chunk.double().sum(dim=0) for chunk in features.split(CHUNK)) / count
    if count <= width:
        root = (features.double() - mean) / (count - 1) ** 0.5
        return Statistics(mean, root.T @ root, count, root)
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for chunk in features.split(CHUNK):
        centred = chunk.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / (count - 1))
    return Statistics(mean, covariance, count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2, never below 0. UserError for unequal widths or NaN.

    The formula is Dowson & Landau 1982 ("The Fréchet distance between multivariate normal distributions"), FID is
    Heusel et al. 2017 (arXiv:1706.08500, eq. 6). No root of a non-symmetric product is taken and no small constant
    is added, so the value is right for covariances without full rank (N <= C).
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of width {len(a.mean)} and {len(b.mean)} have no distance")
    if not all(part.isfinite().all() for part in (a.mean, b.mean, a.covariance, b.covariance)):
        raise UserError("the statistics hold NaN or infinity; compute them anew")
    traces = a.covariance.trace() + b.covariance.trace()
    distance = (a.mean - b.mean).square().sum() + traces - 2 * _shared(a, b, float(traces))
    return max(float(distance), 0.0)  # equal sets end at -1e-13


def _shared(a: Statistics, b: Statistics, traces: float) -> Tensor:
    """tr (S1^1/2 S2 S1^1/2)^1/2.

    With S1 = F1 F1^T and S2 = F2 F2^T it is the sum of the singular values of F1^T F2, and as well the sum of the
    roots of the eigenvalues of F1^T S2 F1, which are found in less than half the time. Singular values carry an error
    of 1e-16 of the largest one; the root of an eigenvalue v near nothing carries 1e-16 of the largest one / root v.
    """
    if a.root is None and b.root is None:
        triangle, failed = torch.linalg.cholesky_ex(a.covariance)
        if not failed:
            values = torch.linalg.eigvalsh(triangle.T @ b.covariance @ triangle)
            noise = values[-1].clamp(min=0) * torch.finfo(torch.float64).eps
            roots = values.clamp(min=0).sqrt()
            if (noise / roots.clamp(min=noise.sqrt())).nan_to_num(0.0).sum() <= ROOT_ERROR * traces:
                return roots.sum()
    return torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum()


def _factor(gaussian: Statistics) -> Tensor:
    """F [C, R] with F F^T = covariance and R <= C."""
    if gaussian.root is not None:
        return gaussian.root.T
    triangle, failed = torch.linalg.cholesky_ex(gaussian.covariance)
    if not failed:  # many times faster than the eigenvectors
        return triangle
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()
