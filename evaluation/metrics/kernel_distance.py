"""Kernel Inception Distance: unbiased at any N, with an interval. Pure functions of tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.features import check_features
from toolkit.errors import check

SUBSET_SEED = 2020
"""torch-fidelity's, so that the same subsets are drawn."""
CUSTOMARY_SUBSET = 1000
FEWEST = 4
CHUNK = 256
"""Rows of a kernel matrix at a time: 100 MiB of float64 against 50,000."""
WITHIN_95 = 1.96


class KernelDistance(NamedTuple):
    """Of the unbiased squared MMD; around 0, below it as well, where the two sets are alike."""

    mean: float
    """Over the subsets; this is KID."""
    std: float
    """Over the subsets, which overlap: no error of `mean`."""
    low: float
    high: float
    """95 % interval of the distance between the two distributions that the samples were drawn from."""
    subsets: int
    subset_size: int
    """Images a side in each subset."""


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = SUBSET_SEED
) -> KernelDistance:
    """Features [N, C] and [M, C] -> KID with the kernel (x.y / C + 1)^3, mean over `subsets` pairs of random subsets.

    Binkowski et al. 2018 (arXiv:1801.01401, section 4); subsets and estimator of torch-fidelity 0.4 metric_kid.py with
    `a` its input1, so values are equal. `subset_size` None is 1000, or half of the smaller side where that is less.
    UserError below 4 images a side and for a subset larger than a side.

    The interval is mean +- 1.96 sqrt(J + std^2 / subsets): J is the two-sample jackknife variance of the
    statistic over all pairs (Arvesen 1969, "Jackknifing U-statistics"), which is too large rather than too small
    between equal distributions; the second term is what drawing a finite number of subsets adds.
    """
    check_features(a, b, fewest=FEWEST, metric="KID")
    smaller = min(len(a), len(b))
    size = min(CUSTOMARY_SUBSET, smaller // 2) if subset_size is None else subset_size
    check(subsets > 0, "kid_subsets", subsets, "at least 1")
    check(2 <= size <= smaller, "kid_subset_size", size, f"2 to {smaller}, the images of the smaller side")
    rows_a, rows_b = _subsets((len(a), len(b)), subsets, size, seed)
    aa, bb, ab = _within(a, rows_a), _within(b, rows_b), _across(a, b, rows_a, rows_b)
    values = (aa.subsets + bb.subsets) / (size * (size - 1)) - 2 * ab.subsets / size**2
    mean, std = float(values.mean()), float(values.std(correction=0))
    variance = _jackknife(aa.rows, ab.rows, len(b)) + _jackknife(bb.rows, ab.columns, len(a))
    half = WITHIN_95 * (variance + std**2 / subsets) ** 0.5
    return KernelDistance(mean, std, mean - half, mean + half, subsets, size)


class _Sums(NamedTuple):
    """Of a kernel matrix: by row, by column, and over the rows and columns of every subset [S]."""

    rows: Tensor
    columns: Tensor
    subsets: Tensor


def _subsets(counts: tuple[int, int], subsets: int, size: int, seed: int) -> list[Tensor]:
    """Two float64 [N, S] of zeros and ones. Draws alternate between the sides, as torch-fidelity's do."""
    random = np.random.RandomState(seed)
    members = [torch.zeros(count, subsets, dtype=torch.float64) for count in counts]
    for i in range(subsets):
        for count, member in zip(counts, members, strict=True):
            member[random.choice(count, size, replace=False), i] = 1
    return members


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """float64 [N, M]. Products in the features' own precision, whose errors average out; sums need float64."""
    return (a @ b.T).double().div_(a.shape[1]).add_(1).pow_(3)


def _within(features: Tensor, member: Tensor) -> _Sums:
    """Sums over all pairs of different rows; every pair is computed once."""
    rows = torch.zeros(len(features), dtype=torch.float64)
    subsets = torch.zeros(member.shape[1], dtype=torch.float64)
    for start in range(0, len(features), CHUNK):
        kernel = _kernel(features[start : start + CHUNK], features[start:])
        end = start + len(kernel)
        kernel[:, : len(kernel)].fill_diagonal_(0)
        rows[start:end] += kernel.sum(dim=1)
        rows[end:] += kernel[:, len(kernel) :].sum(dim=0)
        kernel[:, len(kernel) :] *= 2  # stands for the other order as well
        subsets += (member[start:end] * (kernel @ member[start:])).sum(dim=0)
    return _Sums(rows, rows, subsets)


def _across(a: Tensor, b: Tensor, rows_a: Tensor, rows_b: Tensor) -> _Sums:
    rows, columns = [], torch.zeros(len(b), dtype=torch.float64)
    subsets = torch.zeros(rows_a.shape[1], dtype=torch.float64)
    for part, member in zip(a.split(CHUNK), rows_a.split(CHUNK), strict=True):
        kernel = _kernel(part, b)
        rows.append(kernel.sum(dim=1))
        columns += kernel.sum(dim=0)
        subsets += (member * (kernel @ rows_b)).sum(dim=0)
    return _Sums(torch.cat(rows), columns, subsets)


def _jackknife(own: Tensor, other: Tensor, others: int) -> float:
    """One side's share of the variance, from the sums of each row over its own and over the other side.

    Without row i the statistic is (W - 2 own_i) / ((n-1)(n-2)) - 2 (X - other_i) / ((n-1) others) + constant.
    """
    n = len(own)
    left_out = -2 * own / ((n - 1) * (n - 2)) + 2 * other / ((n - 1) * others)
    return float((left_out - left_out.mean()).square().sum()) * (n - 1) / n
