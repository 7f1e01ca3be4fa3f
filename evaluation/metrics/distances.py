"""Euclidean distances of all pairs, a block at a time, exact where rows are equal."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS, COLUMNS = 2048, 4096
"""Of a block: 64 MiB of float64."""
SAME = 1e-12
"""Of |a|^2 + |b|^2: squared distances below it are what rounding leaves of 0."""


class Block(NamedTuple):
    rows: slice
    columns: slice
    squared: Tensor
    """float64 [R, K]: squared distances of a[rows] from b[columns]."""


def blocks(a: Tensor, b: Tensor) -> Iterator[Block]:
    """All of a [N, C] against all of b [M, C], every column of a row before the next row.

    float64 and around the mean of b, for |a|^2 + |b|^2 - 2 a.b (one matrix product) loses as many digits as the
    distance is shorter than the vectors: float32 would see a copied image at 1e-3 of their length.
    """
    centre = b.sum(dim=0, dtype=torch.float64) / len(b)
    for top in range(0, len(a), ROWS):
        rows = slice(top, min(top + ROWS, len(a)))
        left = a[rows].double() - centre
        for start in range(0, len(b), COLUMNS):
            columns = slice(start, min(start + COLUMNS, len(b)))
            right = b[columns].double() - centre
            lengths = left.square().sum(dim=1, keepdim=True) + right.square().sum(dim=1)
            squared = lengths.addmm(left, right.T, alpha=-2)
            yield Block(rows, columns, squared.masked_fill_(squared < SAME * lengths, 0.0))
