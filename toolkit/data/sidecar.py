"""Embeddings in a file beside a shard: a .npy of float16 [rows, E], row after row, that other tools read too."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from toolkit.errors import UserError

DTYPE = np.dtype("<f2")
MAX_HEADER = 10_000
"""numpy's own limit for a header that it parses."""


def write_header(file: BinaryIO, rows: int, dimension: int) -> None:
    """Before `rows` x `dimension` values of DTYPE."""
    header = {"descr": DTYPE.str, "fortran_order": False, "shape": (rows, dimension)}
    np.lib.format.write_array_header_1_0(file, header)


def check_sidecar(path: Path, dimension: int, rows: int | None = None) -> int:
    """Where the rows begin, in bytes. Reads the header only.

    UserError with expected and found unless the file is float16 [rows, dimension] in C order, all of it there;
    `rows` None: any number of them.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, by_columns, dtype = reader(file, max_header_size=MAX_HEADER)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except Exception as error:  # of a hostile header: ValueError, SyntaxError, KeyError, RecursionError, ...
        raise UserError(f"{path}: no readable .npy ({' '.join(str(error).split())[:100]})") from None
    expected = f"float16 [{'rows' if rows is None else rows}, {dimension}] row by row"
    found = f"{str(dtype)[:40]} {str(list(shape))[:60]}{' by columns' if by_columns else ''}"
    fits = dtype == DTYPE and len(shape) == 2 and shape[1] == dimension and not by_columns
    if not fits or (rows is not None and shape[0] != rows):
        raise UserError(f"{path}: wrong embeddings: {found}, expected {expected}")
    if size - start != shape[0] * dimension * DTYPE.itemsize:
        raise UserError(f"{path}: {size - start:,} bytes of embeddings, its header says {found}: truncated?")
    return start
